//! JSON Schemas of the files that people write, for their editors. What the reader of a file knows besides, `check` tells.

use serde_json::{Value, json};

use super::read::{
    CAPACITIES, CONCURRENCIES, ESCALATIONS, ISSUERS, LABEL_MAX, LOCKS, MODES, ON_LOSSES, PORTS, REBALANCES, STANDBYS,
    SUBDOMAIN_MAX, WEIGHTS,
};

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// That of the configuration. `builtin` are the reconcilers that a kind may name.
pub fn configuration(builtin: &[&str]) -> Value {
    let duration =
        |what: &str| json!({"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "description": what});
    let number = |(least, most): (u16, u16), what: &str| json!({"type": "integer", "minimum": least, "maximum": most, "description": what});
    let words = |all: Vec<&str>, what: &str| json!({"enum": all, "description": what});
    let lock = |what: &str| words(LOCKS.map(|(word, _)| word).to_vec(), what);
    let size = |what: &str| json!({"anyOf": [{"type": "string", "pattern": "^[0-9]+(k|M|G|Ki|Mi|Gi)?$"}, {"type": "integer", "minimum": 0}], "description": what});
    let load = json!({
        "weight": number(WEIGHTS, "Expected load, relative to the other kinds."),
        "concurrency": number(CONCURRENCIES, "Objects reconciled at once."),
        "resync": duration("Every object is looked at again at least this often."),
        "standby": words(STANDBYS.map(|(word, _)| word).to_vec(), "Which replicas keep a cache of a kind that another one leads."),
        "limits": object(json!({
            "object": size("What one object may weigh, as JSON; a larger one is not reconciled, and says so."),
            "cache": size("What a replica keeps of all objects, and again of all their children; what there is no room for is read when it is needed."),
        }), &[]),
    });
    let mut kind = json!({
        "apiVersion": {"type": "string", "description": "Group and version of the kind, such as example.com/v1."},
        "kind": {"type": "string", "pattern": "^[A-Z][A-Za-z0-9]*$", "maxLength": LABEL_MAX, "description": "The kind, as objects bear it."},
        "plural": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": LABEL_MAX, "description": "The resource, as its CRD has it in spec.names.plural, if it is not what English would have it: `leasehold rbac` cannot ask."},
        "lease": object(json!({"name": {"type": "string", "maxLength": LABEL_MAX, "description": "Name of its Lease."}}), &[]),
        "group": {"type": "string", "maxLength": LABEL_MAX, "description": "Kinds of one group share a Lease: they start and stop together, on one replica."},
        "lock": lock("What that is the name of; all but Lease are for migrations."),
        "serviceAccount": {"type": "string", "maxLength": SUBDOMAIN_MAX, "description": "The ServiceAccount that the kind acts as, in the replicas' namespace; by default their own."},
        "escalation": words(ESCALATIONS.map(|(word, _)| word).to_vec(), "Check: the author of an object must be allowed what the object has the kind do. Trust: authors have what the kind's account has."),
        "reconciler": {
            "type": "object",
            "description": "What reconciles it.",
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
            "properties": {
                "builtin": {"enum": builtin, "description": "A reconciler compiled into the binary."},
                "compose": {"type": "string", "minLength": 1, "description": "A file of templates, beside this one."},
            },
        },
    });
    if let (Some(kind), Some(load)) = (kind.as_object_mut(), load.as_object()) {
        kind.extend(load.clone());
    }
    let properties = json!({
        "apiVersion": {"const": "leasehold.dev/v1alpha1"},
        "kind": {"const": "Configuration"},
        "instance": {"type": "string", "maxLength": LABEL_MAX, "description": "Names this installation."},
        "leases": object(json!({
            "namespace": {"type": "string", "maxLength": LABEL_MAX, "description": "Where the Leases live."},
            "duration": duration("How long after its last renewal a holder may be counted out. Whole seconds."),
            "renewDeadline": duration("A holder that could not renew for this long stops its work."),
            "retryPeriod": duration("Between two renewals, and between two attempts."),
            "requestTimeout": duration("The most one request for a Lease may take."),
        }), &[]),
        "placement": object(json!({
            "rebalance": words(REBALANCES.map(|(word, _)| word).to_vec(), "When kinds that are held are moved to even out the spread."),
            "settle": duration("How long the replicas must have been the same before a kind is moved for balance."),
            "grace": duration("The longest that a replica lets another go first for a free Lease."),
            "capacity": number(CAPACITIES, "How much these replicas take, relative to others of the instance."),
        }), &[]),
        "election": object(json!({
            "mode": words(MODES.map(|(word, _)| word).to_vec(), "PerKind: a Lease for each kind or group. Single: one Lease for all kinds."),
            "lease": object(json!({"name": {"type": "string", "maxLength": LABEL_MAX, "description": "Name of the Lease of all kinds; by default that of the instance."}}), &[]),
            "lock": lock("What that is the name of; all but Lease are for migrations."),
        }), &["mode"]),
        "onLoss": words(ON_LOSSES.map(|(word, _)| word).to_vec(), "What follows when a running term is lost. Exit: the process ends at once and is restarted."),
        "drainTimeout": duration("How long a reconciler may take to finish what runs."),
        "defaults": object(load, &[]),
        "webhooks": object(json!({
            "enabled": {"type": "boolean", "description": "Whether every replica serves webhooks."},
            "port": number(PORTS, "The port that they are served on."),
            "name": {"type": "string", "maxLength": LABEL_MAX, "description": "Name of the Service, of the Secret with the certificate, and of the webhook configurations."},
            "shutdownDelay": duration("How long a replica that stops still serves."),
            "certificate": object(json!({
                "issuer": words(ISSUERS.map(|(word, _)| word).to_vec(), "Who keeps the certificate in the Secret."),
                "lifetime": duration("How long a certificate that leasehold makes is good."),
                "files": {"type": "string", "description": "The folder of tls.crt and tls.key instead of the Secret."},
            }), &[]),
        }), &[]),
        "withoutWebhooks": object(json!({
            "types": {
                "type": "array",
                "items": {"type": "string", "pattern": r"^[A-Z][A-Za-z0-9]*(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"},
                "description": "The types that Propagations and ExpiryPolicies may act on where no webhook asks what their authors may do: Job.batch, Pod.",
            },
        }), &[]),
        "kinds": {
            "type": "array",
            "minItems": 1,
            "items": object(kind, &["apiVersion", "kind", "reconciler"]),
        },
    });
    titled("Configuration of leasehold", object(properties, &["apiVersion", "kind", "kinds"]))
}

/// That of the values of the Helm chart, in which the configuration and the compositions stand as they are.
pub fn values(builtin: &[&str]) -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let flag = |what: &str| json!({"type": "boolean", "description": what});
    let any = |what: &str| json!({"type": "object", "description": what});
    let texts = |what: &str| json!({"type": "object", "additionalProperties": {"type": "string"}, "description": what});
    let list = |items: Value, what: &str| json!({"type": "array", "items": items, "description": what});
    let mut configuration = configuration(builtin);
    let mut kind = configuration["properties"]["kinds"]["items"].take();
    kind["properties"]["enabled"] = flag("false takes the kind out.");
    if let Some(fields) = configuration["properties"].as_object_mut() {
        for field in ["apiVersion", "kind", "kinds"] {
            fields.remove(field);
        }
    }
    if let Some(webhooks) = configuration.pointer_mut("/properties/webhooks/properties").and_then(Value::as_object_mut)
    {
        webhooks.remove("enabled");
    }
    let rules = |what: &str| {
        let texts = json!({"type": "array", "items": {"type": "string"}, "minItems": 1});
        let rule = json!({"apiGroups": texts, "resources": texts, "verbs": texts, "resourceNames": texts});
        list(object(rule, &["apiGroups", "resources", "verbs"]), what)
    };
    let mut composition = composition();
    if let Some(fields) = composition.as_object_mut() {
        fields.remove("$schema");
    }
    let properties = json!({
        "replicas": {"type": "integer", "minimum": 0, "description": "How many replicas share the kinds."},
        "image": object(json!({
            "repository": {"type": "string", "minLength": 1},
            "tag": text("The version of the chart, if it is empty."),
            "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$", "description": "Instead of a tag."},
            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
            "pullSecrets": list(json!({"type": "string"}), "Names of Secrets."),
        }), &["repository"]),
        "configuration": object(configuration["properties"].take(), &[]),
        "kinds": {
            "type": "object",
            "minProperties": 1,
            "patternProperties": {r"^[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?$": kind},
            "additionalProperties": false,
            "description": "The kinds by a name of yours, as leasehold.yaml has them.",
        },
        "compositions": {
            "type": "object",
            "patternProperties": {r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$": {"type": ["string", "object"], "if": {"type": "object"}, "then": composition}},
            "additionalProperties": false,
            "description": "Files that kinds name as `reconciler: {compose: NAME.yaml}`, by NAME; as text or as YAML.",
        },
        "webhooks": object(json!({"enabled": flag("Whether every replica serves webhooks.")}), &[]),
        "policies": object(json!({
            "enabled": flag("ValidatingAdmissionPolicies that hold the accounts to what their kinds do."),
            "otherNamespaces": list(json!({"type": "string", "minLength": 1}), "Namespaces of other installations, in which the accounts of this one write nothing."),
        }), &[]),
        "networkPolicy": object(json!({
            "enabled": flag("Whether connections to the replicas are limited."),
            "metricsFrom": list(json!({"type": "object"}), "Who may read the metrics: `from` of a rule of a NetworkPolicy."),
        }), &[]),
        "monitoring": object(json!({
            "enabled": flag("Objects for the Prometheus operator."),
            "labels": texts("Labels by which Prometheus finds them."),
        }), &[]),
        "permissions": object(json!({
            "expiry": rules("What ExpiryPolicies may delete besides; each needs list and delete."),
            "scaling": rules("What ScaleSchedules may scale besides; each needs get and patch of its scale."),
        }), &[]),
        "resources": any("Requests and limits of a replica."),
        "topologySpread": list(object(json!({
            "topologyKey": {"type": "string", "minLength": 1},
            "maxSkew": {"type": "integer", "minimum": 1},
            "whenUnsatisfiable": {"enum": ["ScheduleAnyway", "DoNotSchedule"]},
        }), &["topologyKey"]), "How replicas are spread over zones and nodes."),
        "priorityClass": object(json!({
            "create": flag("false: the class is there already, or none is asked for."),
            "name": text("That of the release, if it is empty."),
            "value": {"type": "integer", "minimum": -2_147_483_648_i64, "maximum": 1_000_000_000},
        }), &[]),
        "podDisruptionBudget": object(json!({
            "maxUnavailable": {"type": ["integer", "string", "null"]},
            "minAvailable": {"type": ["integer", "string", "null"]},
        }), &[]),
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 1, "description": "Longer than drainTimeout and the successors' caches (10s)."},
        "logFormat": {"enum": ["text", "json"]},
        "logFilter": text("Which lines are logged, such as info,leasehold::replica=debug."),
        "nodeSelector": texts("Of the Pods."),
        "tolerations": list(json!({"type": "object"}), "Of the Pods."),
        "affinity": any("Of the Pods."),
        "podLabels": texts("Labels of the Pods."),
        "podAnnotations": texts("Annotations of the Pods."),
        "labels": texts("Labels of every object."),
        "fullnameOverride": {"type": "string", "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": 40, "description": "What names begin with."},
        "global": any("Of a chart that has this one in it."),
    });
    titled("Values of the chart of leasehold", object(properties, &["replicas", "image", "kinds"]))
}

/// That of a composition.
pub fn composition() -> Value {
    let text = |what: &str| json!({"type": "string", "description": what});
    let expressions = |what: &str| json!({"type": "array", "items": {"type": "string", "pattern": r"^\s*\$\{[\s\S]*\}\s*$"}, "description": what});
    let id = json!({"type": "string", "pattern": "^[a-z][A-Za-z0-9]*$", "maxLength": LABEL_MAX, "description": "How expressions and messages name it."});
    let template = json!({
        "type": "object",
        "description": "The object. A value that is one ${expression} keeps its type; null leaves a field out.",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": text("Plain text: watches and permissions follow from it."),
            "kind": text("Plain text: watches and permissions follow from it."),
            "metadata": {"type": "object", "required": ["name"]},
            "status": false,
        },
    });
    let child = json!({
        "id": id,
        "template": template,
        "includeWhen": expressions("All must be true, or there is no such child."),
        "forEach": text("A list or a mapping: one child for each item, which is `each` in the template."),
        "max": {"type": "integer", "minimum": 1, "maximum": 1000, "description": "The most children of a forEach."},
        "after": {"type": "array", "description": "Children that must be there first, or be ready first.", "items": {"oneOf": [
            {"type": "string"},
            object(json!({
                "id": id,
                "ready": {"type": "boolean", "description": "It must be ready, not only be there."},
            }), &["id"]),
        ]}},
        "deletion": {"type": "string", "pattern": r"^(Delete|Keep|\s*\$\{[\s\S]*\}\s*)$", "description": "Keep: it stays when its object goes, or does not say it any more."},
        "generate": {"type": "object", "minProperties": 1, "description": "Values of a Secret that are made once, by their keys in its data.", "additionalProperties": object(json!({
            "length": {"type": "integer", "minimum": 16, "maximum": 1024, "description": "Characters, or bytes; 32 if it is left out."},
            "characters": {"enum": ["Alphanumeric", "Hex", "Bytes"], "description": "Of what the value is made."},
        }), &[])},
        "renew": text("Each new value of this text has the generated values made anew."),
        "adopt": {"enum": ["Never", "IfUnowned", "Always"], "description": "Whether an object of its name that is not ours becomes the child."},
        "update": {"enum": ["Apply", "Recreate", "OnDelete"], "description": "How it is changed. Recreate: made anew where a field cannot change. OnDelete: only made anew after a deletion."},
        "readyWhen": expressions("All must be true for the child to be ready; it is `self`."),
        "resource": text("The plural, if it is not what English would have it."),
    });
    let related = json!({
        "id": id,
        "apiVersion": text("Group and version."),
        "kind": text("Kind."),
        "resource": text("The plural, if it is not what English would have it."),
        "namespace": {"type": "string", "maxLength": LABEL_MAX, "description": "Only in this namespace."},
        "name": {"type": "string", "maxLength": SUBDOMAIN_MAX, "description": "Only the one of this name."},
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}, "description": "Only those with these labels."},
    });
    let lookup = json!({
        "id": id,
        "apiVersion": text("Group and version."),
        "kind": text("Kind."),
        "resource": text("The plural, if it is not what English would have it."),
        "namespace": text("Its namespace."),
        "name": text("Its name."),
    });
    let rule = json!({
        "on": {"enum": ["Create", "Write"], "description": "Create: only when an object comes into being."},
        "rule": {"type": "string", "description": "One ${expression} that must be true."},
        "message": text("For the author of an object: which field is wrong, and what to do."),
    });
    let properties = json!({
        "apiVersion": {"const": "leasehold.dev/v1alpha1"},
        "kind": {"const": "Composition"},
        "related": {"type": "array", "items": object(related, &["id", "apiVersion", "kind"]), "description": "Objects that are read only."},
        "children": {"type": "array", "minItems": 1, "items": object(child, &["id", "template"]), "description": "What each object gets."},
        "status": {"type": "object", "description": "Fields of the parent's status."},
        "admission": object(json!({
            "defaults": {"type": "object", "description": "Fields that an object gets where it says nothing."},
            "lookups": {"type": "array", "items": object(lookup, &["id", "apiVersion", "kind", "name"]), "description": "Objects that are looked up for the rules."},
            "rules": {"type": "array", "items": object(rule, &["rule", "message"]), "description": "What must be true of an object before it is stored."},
        }), &[]),
    });
    titled("Composition of a kind", object(properties, &["apiVersion", "kind", "children"]))
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": properties, "required": required})
}

fn titled(title: &str, mut schema: Value) -> Value {
    schema["$schema"] = json!(DRAFT);
    schema["title"] = json!(title);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every field of a file that is known to be right stands in the schema: enough of a validator for what these schemas say.
    fn fits(value: &Value, schema: &Value, path: &str) {
        if let Some(all) = schema.get("enum").and_then(Value::as_array) {
            assert!(all.contains(value), "{path}: {value} is none of {all:?}");
        }
        match (value, schema["type"].as_str()) {
            (Value::Object(fields), Some("object")) => {
                for (name, value) in fields {
                    let path = format!("{path}.{name}");
                    match schema["properties"].get(name) {
                        Some(property) => fits(value, property, &path),
                        None => assert_ne!(schema["additionalProperties"], json!(false), "{path} is not in the schema"),
                    }
                }
                for required in schema["required"].as_array().into_iter().flatten() {
                    assert!(fields.contains_key(required.as_str().unwrap()), "{path}.{required} is missing");
                }
            }
            (Value::Array(items), Some("array")) => items.iter().for_each(|item| fits(item, &schema["items"], path)),
            (Value::String(_), Some("string")) | (Value::Bool(_), Some("boolean")) | (_, None) => {}
            (Value::Number(number), Some("integer")) => {
                let number = number.as_i64().unwrap();
                let within = schema["minimum"].as_i64() <= Some(number) && Some(number) <= schema["maximum"].as_i64();
                assert!(within, "{path}: {number}");
            }
            (value, expected) => panic!("{path}: {value} is no {expected:?}"),
        }
    }

    #[test]
    fn the_shipped_files_fit_their_schemas() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
        let read = |name: &str| -> Value {
            serde_yaml::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        };
        let builtin = ["propagation", "expiry", "scale-schedule"];
        fits(&read("leasehold.yaml"), &configuration(&builtin), "");
        fits(&read("examples/leasehold.yaml"), &configuration(&builtin), "");
        let examples =
            ["catset", "bluegreen", "indexedjob", "teamdatabase"].map(|name| format!("examples/{name}.yaml"));
        for name in ["tenant.yaml", "webapp.yaml"].into_iter().chain(examples.iter().map(String::as_str)) {
            fits(&read(name), &composition(), name);
        }
    }

    #[test]
    fn a_schema_knows_every_field_that_the_reader_knows() {
        let unknown = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nleases: {x: 1}\nplacement: {x: 1}\ndefaults: {x: 1, limits: {x: 1}}\nwebhooks: {x: 1, certificate: {x: 1}}\nwithoutWebhooks: {x: 1}\nx: 1\nkinds:\n- {apiVersion: e.com/v1, kind: W, reconciler: {builtin: expiry, x: 1}, lease: {x: 1}, x: 1}\n";
        let errors = super::super::load("f.yaml", unknown, &["expiry"]).unwrap_err();
        let schema = configuration(&["expiry"]);
        let mut sections = 0;
        for violation in errors.violations() {
            let Some((_, known)) = violation.message.split_once("known here: ") else { continue };
            let section = violation.path.strip_suffix('x').unwrap().trim_end_matches('.');
            let pointer: String = section
                .split('.')
                .filter(|part| !part.is_empty())
                .map(|part| {
                    part.strip_suffix("[0]")
                        .map_or_else(|| format!("/properties/{part}"), |list| format!("/properties/{list}/items"))
                })
                .collect();
            for field in known.split(", ") {
                assert!(schema.pointer(&format!("{pointer}/properties/{field}")).is_some(), "{section}.{field}");
            }
            sections += 1;
        }
        assert_eq!(sections, 11);
    }
}
