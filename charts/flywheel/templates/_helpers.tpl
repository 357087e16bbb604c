{{/* Name of the chart, as a label. */}}
{{- define "flywheel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Stem of the names of cluster-wide and other objects. */}}
{{- define "flywheel.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "flywheel.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "flywheel.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Name of the Deployment, its lease and what belongs to it. */}}
{{- define "flywheel.operator" -}}
{{ include "flywheel.fullname" . }}-operator
{{- end }}

{{- define "flywheel.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "flywheel.operator" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: name the ServiceAccount, since serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels by which the operator's pods are selected; they never change. */}}
{{- define "flywheel.selector" -}}
app.kubernetes.io/name: {{ include "flywheel.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "flywheel.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "flywheel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: characterflywheel
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* An image's reference. Argument: dict "image" (its values) "chart" (.Chart). */}}
{{- define "flywheel.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .chart.AppVersion .image.tag }}
{{- end }}
{{- end }}

{{/* What the operator does in each namespace that it works in. */}}
{{- define "flywheel.rules" -}}
# Its own objects. They are patched for their finalizer only; status is applied.
- apiGroups: [characterflywheel.dev]
  resources: [abtests, generations, rewardmodels]
  verbs: [get, list, watch, patch]
# The test that a Generation asks for.
- apiGroups: [characterflywheel.dev]
  resources: [abtests]
  verbs: [create]
- apiGroups: [characterflywheel.dev]
  resources: [abtests/status, generations/status, rewardmodels/status]
  verbs: [patch]
# Owner references with blockOwnerDeletion, where OwnerReferencesPermissionEnforcement is on (OpenShift).
- apiGroups: [characterflywheel.dev]
  resources: [abtests/finalizers, generations/finalizers, rewardmodels/finalizers]
  verbs: [update]
# Stages.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, delete]
# Model servers, the public Service of a lineage (never deleted), and the Services of a test's arms (deleted with it).
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, update, patch, delete]
# The key that users' ids are hashed with, and the token between router and gateways: made, never read.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# Routers are never drained all at once.
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
# Why Kueue holds a Job, in its own words. Without Kueue the rule speaks of nothing.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
# A Ray cluster for curation, where a Generation asks for one. Without KubeRay the rule speaks of nothing.
- apiGroups: [ray.io]
  resources: [rayclusters]
  verbs: [get, list, create, delete]
# Is the namespace itself being deleted? Then nothing is kept from it.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end }}
