package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// The controller-manager's own host-path provisioner makes folders that only root can write, and host-path
// volumes ignore fsGroup. This one makes a `local` volume per claim, in a folder open to every user; the
// kubelet applies a pod's fsGroup to it.
type provisioner struct {
	name, folder, node string
	client             kubernetes.Interface
	claims, volumes    cache.SharedIndexInformer
	queue              workqueue.TypedRateLimitingInterface[item]
}

type item struct{ kind, key string }

func newProvisionerCommand() *cobra.Command {
	var kubeconfig string
	p := &provisioner{}
	command := &cobra.Command{
		Use:           "local-provisioner",
		Short:         "make a folder for each claim, and remove it with the claim",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			if p.client, err = kubernetes.NewForConfig(config); err != nil {
				return err
			}
			return p.run(command.Context())
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "credentials")
	command.Flags().StringVar(&p.folder, "folder", "", "where the volumes are")
	command.Flags().StringVar(&p.node, "node", "", "name of the node that has the folder")
	command.Flags().StringVar(&p.name, "provisioner-name", "", "as the StorageClass says it")
	return command
}

func (p *provisioner) run(ctx context.Context) error {
	if ctx == nil {
		ctx = context.Background()
	}
	p.queue = workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[item]())
	factory := informers.NewSharedInformerFactory(p.client, 10*time.Minute)
	p.claims = factory.Core().V1().PersistentVolumeClaims().Informer()
	p.volumes = factory.Core().V1().PersistentVolumes().Informer()
	for kind, informer := range map[string]cache.SharedIndexInformer{"claim": p.claims, "volume": p.volumes} {
		enqueue := func(object any) {
			if key, err := cache.MetaNamespaceKeyFunc(object); err == nil {
				p.queue.Add(item{kind, key})
			}
		}
		handler := cache.ResourceEventHandlerFuncs{AddFunc: enqueue, UpdateFunc: func(_, now any) { enqueue(now) }}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for {
		next, shutdown := p.queue.Get()
		if shutdown {
			return nil
		}
		if err := p.reconcile(ctx, next); err != nil {
			klog.ErrorS(err, "will try again", "kind", next.kind, "key", next.key)
			p.queue.AddRateLimited(next)
		} else {
			p.queue.Forget(next)
		}
		p.queue.Done(next)
	}
}

func (p *provisioner) reconcile(ctx context.Context, next item) error {
	store, act := p.claims.GetStore(), p.provision
	if next.kind == "volume" {
		store, act = p.volumes.GetStore(), p.reclaim
	}
	object, exists, err := store.GetByKey(next.key)
	if err != nil || !exists {
		return err
	}
	return act(ctx, object)
}

// provision answers a claim that the scheduler has given to a node (or that does not wait for one).
func (p *provisioner) provision(ctx context.Context, object any) error {
	claim := object.(*core.PersistentVolumeClaim)
	waits := claim.Annotations["volume.kubernetes.io/selected-node"] == ""
	if claim.Spec.VolumeName != "" || claim.DeletionTimestamp != nil || waits ||
		claim.Annotations["volume.kubernetes.io/storage-provisioner"] != p.name {
		return nil
	}
	name := "pvc-" + string(claim.UID)
	folder := filepath.Join(p.folder, name)
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(folder, 0o777); err != nil { // whatever the umask
		return err
	}
	onNode := core.NodeSelectorRequirement{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{p.node}}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{"pv.kubernetes.io/provisioned-by": p.name}},
		Spec: core.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      claim.Spec.Resources.Requests,
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			StorageClassName:              *claim.Spec.StorageClassName,
			VolumeMode:                    claim.Spec.VolumeMode,
			PersistentVolumeSource:        core.PersistentVolumeSource{Local: &core.LocalVolumeSource{Path: folder}},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{
				{MatchExpressions: []core.NodeSelectorRequirement{onNode}},
			}}},
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
		},
	}
	_, err := p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	if errors.IsAlreadyExists(err) {
		return nil
	}
	klog.InfoS("made a volume", "volume", name, "claim", claim.Namespace+"/"+claim.Name, "err", err)
	return err
}

// reclaim removes the folder of a volume whose claim is gone, and then the volume.
func (p *provisioner) reclaim(ctx context.Context, object any) error {
	volume := object.(*core.PersistentVolume)
	if volume.Annotations["pv.kubernetes.io/provisioned-by"] != p.name || volume.Spec.Local == nil ||
		volume.Status.Phase != core.VolumeReleased || volume.DeletionTimestamp != nil ||
		volume.Spec.PersistentVolumeReclaimPolicy != core.PersistentVolumeReclaimDelete {
		return nil
	}
	if folder := volume.Spec.Local.Path; filepath.Dir(folder) != filepath.Clean(p.folder) {
		return fmt.Errorf("%s does not lie in %s: left alone", folder, p.folder)
	}
	if err := os.RemoveAll(volume.Spec.Local.Path); err != nil {
		return err
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
	if errors.IsNotFound(err) {
		return nil
	}
	klog.InfoS("removed a volume", "volume", volume.Name, "err", err)
	return err
}
