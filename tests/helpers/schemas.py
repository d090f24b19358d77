"Schemas of custom resources of Kubernetes, read strictly."


def closed(schema):
    "The schema of a custom resource, unknown keys refused, Kubernetes' number-or-text understood."
    if not isinstance(schema, dict):
        return [closed(s) for s in schema] if isinstance(schema, list) else schema
    made = {k: closed(v) for k, v in schema.items()}
    if made.pop("x-kubernetes-int-or-string", None):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
