//! The defaults that a CRD's schema gives, as the API server fills them in:
//! <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#defaulting>. Pure.

use serde_json::Value;

/// The schema of a version of a kind, if this is its CRD.
pub(super) fn schema<'a>(crd: &'a Value, group: &str, kind: &str, version: &str) -> Option<&'a Value> {
    let is_it = crd["kind"] == "CustomResourceDefinition"
        && crd["spec"]["group"] == group
        && crd["spec"]["names"]["kind"] == kind;
    let versions = crd["spec"]["versions"].as_array().filter(|_| is_it)?;
    versions.iter().find(|it| it["name"] == version)?.pointer("/schema/openAPIV3Schema")
}

/// Fills in what is missing and has a default. A null counts as missing where the schema does not allow it.
pub(super) fn fill(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(fields) => {
            let properties = schema["properties"].as_object();
            for (name, schema) in properties.into_iter().flatten() {
                if let Some(default) = schema.get("default") {
                    let is_missing =
                        fields.get(name).is_none_or(|value| value.is_null() && schema["nullable"] != Value::Bool(true));
                    if is_missing {
                        fields.insert(name.clone(), default.clone());
                    }
                }
                if let Some(field) = fields.get_mut(name) {
                    fill(field, schema);
                }
            }
            let others = &schema["additionalProperties"];
            if others.is_object() {
                let is_other = |name: &str| !properties.is_some_and(|known| known.contains_key(name));
                fields.iter_mut().filter(|(name, _)| is_other(name)).for_each(|(_, value)| fill(value, others));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, &schema["items"])),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_is_filled_in_at_every_depth_and_nothing_else_is() {
        let schema = json!({"properties": {"spec": {
            "default": {},
            "properties": {
                "isolation": {"default": "DenyIngress"},
                "none": {"default": 1},
                "nullable": {"default": 1, "nullable": true},
                "said": {"default": 1},
                "plain": {"type": "string"},
                "ports": {"items": {"properties": {"protocol": {"default": "TCP"}}}},
                "limits": {"additionalProperties": {"properties": {"unit": {"default": "MiB"}}}},
            },
        }}});
        let mut object = json!({"metadata": {"name": "x"}, "spec": {
            "none": null, "nullable": null, "said": 2, "ports": [{"port": 1}, {"port": 2, "protocol": "UDP"}],
            "limits": {"memory": {"value": 3}},
        }});
        fill(&mut object, &schema);
        assert_eq!(
            object["spec"],
            json!({
                "isolation": "DenyIngress", "none": 1, "nullable": null, "said": 2,
                "ports": [{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "UDP"}],
                "limits": {"memory": {"value": 3, "unit": "MiB"}},
            })
        );
        let mut empty = json!({"metadata": {}});
        fill(&mut empty, &schema);
        assert_eq!(empty["spec"]["isolation"], "DenyIngress", "a default has defaults of its own");
    }

    #[test]
    fn the_schema_is_that_of_the_kind_and_the_version() {
        let crd = json!({"kind": "CustomResourceDefinition", "spec": {
            "group": "example.com", "names": {"kind": "Widget"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object"}}}],
        }});
        assert!(schema(&crd, "example.com", "Widget", "v1").is_some());
        for (group, kind, version) in
            [("other.com", "Widget", "v1"), ("example.com", "Gadget", "v1"), ("example.com", "Widget", "v2")]
        {
            assert!(schema(&crd, group, kind, version).is_none(), "{group} {kind} {version}");
        }
    }
}
