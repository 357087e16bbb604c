"""Pure builders of the objects that we create: data in, manifests out."""
