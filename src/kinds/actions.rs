//! What an object would have its kind do: from the object to the permissions that this takes. For all kinds. Pure.

use std::{collections::BTreeSet, sync::Arc};

use kube::core::GroupVersionKind;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    compose::{Composition, Print, role_resource},
    expiry::{self, ExpiryPolicySpec},
    propagation::{self, PropagationSpec, SourceKind},
    reach::Reach,
    schedule::{self, ScaleScheduleSpec, ScheduleConversion},
};
use crate::{
    reconcile::children::Type,
    webhooks::{
        Webhook as _,
        action::{Action, Place},
        ask::{Resource, Resources},
    },
};

/// The label that the API server itself puts on each namespace, and that cannot be changed: its name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What the objects of a kind have it do.
#[derive(Clone, Debug)]
pub enum Acts {
    /// Copy one object into other namespaces.
    Propagation,
    /// Delete objects of a type.
    Expiry,
    /// Scale a workload.
    Schedule,
    /// Make children.
    Composed(Arc<Composition>),
}

/// What keeps an object from being judged: it is invalid, for this reason.
type Invalid = String;

impl Acts {
    /// Those of a reconciler that is compiled in.
    pub fn of_builtin(name: &str) -> Option<Self> {
        match name {
            "propagation" => Some(Self::Propagation),
            "expiry" => Some(Self::Expiry),
            "scale-schedule" => Some(Self::Schedule),
            _ => None,
        }
    }

    /// The types that the API server has to say how it serves them, before [`actions`](Self::actions) can be told.
    ///
    /// # Errors
    /// What is wrong with the object.
    pub fn types(&self, object: &Value) -> Result<Vec<GroupVersionKind>, Invalid> {
        Ok(match self {
            Self::Propagation => Vec::new(),
            Self::Expiry => vec![expiry::plan::validate(&spec::<ExpiryPolicySpec>(object)?)?.target],
            Self::Schedule => vec![schedule::plan::validate(&spec::<ScaleScheduleSpec>(&first(object)?)?)?.target],
            Self::Composed(composition) => composition.types().iter().map(|of| of.gvk()).collect(),
        })
    }

    /// What the object has its kind do, each thing once.
    ///
    /// # Errors
    /// What is wrong with the object, or that it reaches too far.
    pub fn actions(&self, object: &Value, reach: &Reach, resources: &Resources) -> Result<BTreeSet<Action>, Invalid> {
        match self {
            Self::Propagation => propagation(&spec(object)?, reach),
            Self::Expiry => expiry(object, reach, resources),
            Self::Schedule => schedule(&first(object)?, reach, resources),
            Self::Composed(composition) => composed(composition, object, resources),
        }
    }
}

fn spec<S: DeserializeOwned>(object: &Value) -> Result<S, Invalid> {
    serde_json::from_value(object["spec"].clone()).map_err(|error| format!("spec: {error}"))
}

/// A ScaleSchedule in the version that its kind works from.
fn first(object: &Value) -> Result<Value, Invalid> {
    let version = object["apiVersion"].as_str().and_then(|version| version.rsplit('/').next()).unwrap_or_default();
    match version {
        "v1alpha1" => Ok(object.clone()),
        other => ScheduleConversion.convert(object.clone(), other, "v1alpha1"),
    }
}

fn namespace(object: &Value) -> Result<String, Invalid> {
    let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).filter(|name| !name.is_empty());
    namespace.map(str::to_owned).ok_or_else(|| "metadata.namespace: is missing".to_owned())
}

/// The source is read; copies are made, changed and deleted, by name when they are there.
fn propagation(spec: &PropagationSpec, reach: &Reach) -> Result<BTreeSet<Action>, Invalid> {
    let valid = propagation::plan::validate(spec)?;
    valid.within(reach)?;
    let resource = match valid.source.kind {
        SourceKind::ConfigMap => "configmaps",
        SourceKind::Secret => "secrets",
    };
    let action = |verb, place, name| Action {
        place,
        group: String::new(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        subresource: None,
        name,
        verb,
    };
    let source = Place::Namespace(valid.source.namespace.to_string());
    let mut actions = BTreeSet::from([action("get", source, Some(valid.source.name.to_string()))]);
    let selected = match &spec.targets.namespace_selector {
        None => Some(Vec::new()),
        Some(selector) => {
            let by_label = selector.match_labels.iter().flatten().find(|(key, _)| *key == NAME_LABEL);
            let is_one_of = |operator: &str| operator == "In";
            let by_expression = selector.match_expressions.iter().flatten();
            let mut by_expression = by_expression.filter(|it| it.key == NAME_LABEL && is_one_of(&it.operator));
            by_label
                .map(|(_, name)| vec![name.clone()])
                .or_else(|| by_expression.next().map(|it| it.values.clone().unwrap_or_default()))
        }
    };
    let places: Vec<_> = match selected {
        // Labels are for others to choose: any namespace may be selected tomorrow.
        None => vec![Place::Anywhere],
        Some(selected) => {
            let named = selected.into_iter().chain(spec.targets.namespaces.iter().cloned());
            named.filter(|name| !valid.bars(name)).map(Place::Namespace).collect()
        }
    };
    for place in places {
        actions.extend(["create", "patch", "delete"].map(|verb| action(verb, place.clone(), None)));
    }
    Ok(actions)
}

/// Objects of the type are listed and deleted, whichever they are.
fn expiry(object: &Value, reach: &Reach, resources: &Resources) -> Result<BTreeSet<Action>, Invalid> {
    let valid = expiry::plan::validate(&spec(object)?)?;
    let namespace = namespace(object)?;
    valid.within(reach, &namespace)?;
    let (of, resource) = (&valid.target, served(&valid.target, "spec.target", resources)?);
    let action = |verb| Action {
        place: Place::Namespace(namespace.clone()),
        group: of.group.clone(),
        version: of.version.clone(),
        resource: resource.plural.clone(),
        subresource: None,
        name: None,
        verb,
    };
    Ok(["list", "delete"].map(action).into())
}

/// The scale of the one target is read and changed.
fn schedule(object: &Value, reach: &Reach, resources: &Resources) -> Result<BTreeSet<Action>, Invalid> {
    let valid = schedule::plan::validate(&spec(object)?)?;
    let namespace = namespace(object)?;
    reach.namespace(&namespace).map_err(|why| format!("metadata.namespace: {why}"))?;
    let (of, resource) = (&valid.target, served(&valid.target, "spec.targetRef", resources)?);
    let action = |verb| Action {
        place: Place::Namespace(namespace.clone()),
        group: of.group.clone(),
        version: of.version.clone(),
        resource: resource.plural.clone(),
        subresource: Some("scale"),
        name: Some(valid.name.to_string()),
        verb,
    };
    Ok(["get", "patch"].map(action).into())
}

/// Children are made, changed and deleted; a role is given away, or written.
fn composed(composition: &Composition, object: &Value, resources: &Resources) -> Result<BTreeSet<Action>, Invalid> {
    let found = |of: &Type| resources.get(&(of.api_version(), of.kind.clone()));
    let prints = composition.footprint(object, &|of| found(of).map(|resource| resource.namespaced))?;
    let mut actions = BTreeSet::new();
    for Print { of, place, binds } in prints {
        let plural = found(&of).map(|resource| resource.plural.clone()).unwrap_or_default();
        let action = |verb, resource: String, name| Action {
            place: place.clone(),
            group: of.group.clone(),
            version: of.version.clone(),
            resource,
            subresource: None,
            name,
            verb,
        };
        actions.extend(["create", "patch", "delete"].map(|verb| action(verb, plural.clone(), None)));
        // The API server asks for these of an author who writes such an object by hand.
        actions.extend(binds.map(|(resource, name)| action("bind", resource.to_owned(), Some(name))));
        actions.extend(role_resource(&of).map(|resource| action("escalate", resource.to_owned(), None)));
    }
    Ok(actions)
}

fn served<'r>(of: &GroupVersionKind, field: &str, resources: &'r Resources) -> Result<&'r Resource, Invalid> {
    let (api_version, kind) = (of.api_version(), &of.kind);
    let found = resources.get(&(api_version.clone(), kind.clone()));
    found.ok_or_else(|| {
        format!(
            "{field}: the API server does not serve {api_version} {kind}, so your rights on it cannot be checked: correct it, or install \
             its CRD first"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{config::Configuration, kinds::reach::Authors};

    fn reach(webhooks: bool) -> Reach {
        let text = "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nkinds:\n\
                    - {apiVersion: e.com/v1, kind: W, reconciler: {builtin: x}}\n";
        let config: Configuration = crate::config::load("f.yaml", text, &["x"]).unwrap();
        Reach::of(&config.kinds[0], &config, if webhooks { Authors::Asked } else { Authors::Unserved }, "replicas")
    }

    fn resources() -> Resources {
        [
            ("v1", "ConfigMap", "configmaps", true),
            ("v1", "Service", "services", true),
            ("v1", "Secret", "secrets", true),
            ("v1", "Namespace", "namespaces", false),
            ("v1", "ResourceQuota", "resourcequotas", true),
            ("v1", "LimitRange", "limitranges", true),
            ("apps/v1", "Deployment", "deployments", true),
            ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true),
            ("networking.k8s.io/v1", "Ingress", "ingresses", true),
            ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true),
            ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", true),
            ("rbac.authorization.k8s.io/v1", "Role", "roles", true),
        ]
        .map(|(version, kind, plural, namespaced)| {
            ((version.to_owned(), kind.to_owned()), Resource { plural: plural.to_owned(), namespaced })
        })
        .into()
    }

    fn object(version: &str, kind: &str, spec: Value) -> Value {
        let metadata = json!({"name": "o", "namespace": "shop"});
        json!({"apiVersion": format!("leasehold.dev/{version}"), "kind": kind, "metadata": metadata, "spec": spec})
    }

    fn of(acts: &Acts, object: &Value) -> Result<Vec<String>, String> {
        let actions = acts.actions(object, &reach(true), &resources())?;
        let said = actions.into_iter().map(|Action { place, group, version: _, resource, subresource, name, verb }| {
            let place = match place {
                Place::Cluster => String::new(),
                Place::Anywhere => " in all".to_owned(),
                Place::Namespace(name) => format!(" in {name}"),
            };
            let part = subresource.map_or_else(String::new, |part| format!("/{part}"));
            let group = if group.is_empty() { String::new() } else { format!(".{group}") };
            let name = name.map_or_else(String::new, |name| format!(" {name}"));
            format!("{verb} {resource}{part}{group}{name}{place}")
        });
        let mut said: Vec<_> = said.collect();
        said.sort();
        Ok(said)
    }

    /// `create`, `delete` and `patch` of a resource, as [`of`] has them.
    fn written(resource: &str) -> Vec<String> {
        ["create", "delete", "patch"].map(|verb| format!("{verb} {resource}")).into()
    }

    fn sorted(parts: &[Vec<String>]) -> Vec<String> {
        let mut all = parts.concat();
        all.sort();
        all
    }

    #[test]
    fn a_propagation_reads_its_source_and_writes_in_its_targets() {
        let propagation = |kind: &str, targets: Value| {
            let source = json!({"kind": kind, "namespace": "home", "name": "x"});
            object("v1alpha1", "Propagation", json!({"source": source, "targets": targets}))
        };
        let name_is =
            |values: Value| json!({"matchExpressions": [{"key": NAME_LABEL, "operator": "In", "values": values}]});
        let name_is_not = json!({"matchExpressions": [{"key": NAME_LABEL, "operator": "NotIn", "values": ["a"]}]});
        for (kind, targets, places) in [
            ("Secret", json!({"namespaces": ["a", "b"]}), vec!["secrets in a", "secrets in b"]),
            ("Secret", json!({"namespaces": ["a", "b", "home"], "exclude": ["b"]}), vec!["secrets in a"]),
            ("ConfigMap", json!({"namespaceSelector": {}}), vec!["configmaps in all"]),
            (
                "ConfigMap",
                json!({"namespaceSelector": {"matchLabels": {"team": "a"}}, "namespaces": ["a"]}),
                vec!["configmaps in all"],
            ),
            (
                "Secret",
                json!({"namespaceSelector": {"matchLabels": {NAME_LABEL: "a", "x": "y"}}, "namespaces": ["b"]}),
                vec!["secrets in a", "secrets in b"],
            ),
            (
                "Secret",
                json!({"namespaceSelector": name_is(json!(["a", "b"])), "exclude": ["a"]}),
                vec!["secrets in b"],
            ),
            ("Secret", json!({"namespaceSelector": name_is_not}), vec!["secrets in all"]),
        ] {
            let source = format!("get {}s x in home", kind.to_lowercase());
            let mut expected: Vec<_> = places.iter().map(|place| written(place)).collect();
            expected.push(vec![source]);
            assert_eq!(of(&Acts::Propagation, &propagation(kind, targets.clone())), Ok(sorted(&expected)), "{targets}");
        }
        // Overwriting takes what a copy takes.
        let mut over = propagation("Secret", json!({"namespaces": ["a"]}));
        over["spec"]["onConflict"] = json!("Overwrite");
        assert_eq!(
            of(&Acts::Propagation, &over),
            Ok(sorted(&[vec!["get secrets x in home".to_owned()], written("secrets in a")]))
        );
    }

    #[test]
    fn a_policy_lists_and_deletes_its_type_in_its_namespace() {
        let policy = |version: &str, kind: &str| {
            object("v1alpha1", "ExpiryPolicy", json!({"target": {"apiVersion": version, "kind": kind}, "ttl": "1h"}))
        };
        let expected = ["delete secrets in shop", "list secrets in shop"].map(str::to_owned).to_vec();
        assert_eq!(of(&Acts::Expiry, &policy("v1", "Secret")), Ok(expected));
        let types = Acts::Expiry.types(&policy("apps/v1", "Deployment")).unwrap();
        assert_eq!(types, [GroupVersionKind::gvk("apps", "v1", "Deployment")]);
        let unserved = of(&Acts::Expiry, &policy("e.com/v1", "Odd")).unwrap_err();
        assert!(unserved.starts_with("spec.target: the API server does not serve e.com/v1 Odd, so"), "{unserved}");
        let invalid = of(&Acts::Expiry, &policy("v1", "ServiceAccount")).unwrap_err();
        assert!(invalid.contains("must not expire"), "{invalid}");
    }

    #[test]
    fn a_schedule_reads_and_changes_the_scale_of_its_target_in_both_versions() {
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"});
        let first =
            json!({"targetRef": target, "windows": [{"days": ["Mon"], "from": "08:00", "to": "09:00", "replicas": 0}]});
        let second = json!({
            "scaleTargetRef": target,
            "windows": [{"name": "w", "days": ["Mon"], "start": "08:00", "end": "09:00", "replicas": 0}],
        });
        let expected = ["get deployments/scale.apps web in shop", "patch deployments/scale.apps web in shop"];
        for (version, spec) in [("v1alpha1", first.clone()), ("v1beta1", second)] {
            let schedule = object(version, "ScaleSchedule", spec);
            assert_eq!(Acts::Schedule.types(&schedule).unwrap().len(), 1, "{version}");
            assert_eq!(of(&Acts::Schedule, &schedule).unwrap(), expected, "{version}");
        }
        assert!(of(&Acts::Schedule, &object("v7", "ScaleSchedule", first)).is_err(), "a version that is not known");
    }

    fn composed(file: &str) -> Acts {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
        Acts::Composed(Arc::new(Composition::read(file, &std::fs::read_to_string(path).unwrap()).unwrap()))
    }

    #[test]
    fn a_web_app_makes_what_its_composition_says_of_it() {
        let acts = composed("webapp.yaml");
        let always = [written("deployments.apps in shop"), written("services in shop")].concat();
        let autoscaler = written("horizontalpodautoscalers.autoscaling in shop");
        let ingress = written("ingresses.networking.k8s.io in shop");
        for (spec, more) in [
            (json!({"image": "x"}), vec![]),
            (json!({"image": "x", "host": "a.b"}), ingress),
            (json!({"image": "x", "autoscale": {"min": 1, "max": 2, "cpu": 50}}), autoscaler),
        ] {
            let app = object("v1alpha1", "WebApp", spec.clone());
            assert_eq!(of(&acts, &app), Ok(sorted(&[always.clone(), more])), "{spec}");
        }
        assert_eq!(acts.types(&json!({})).unwrap().len(), 4);
    }

    /// What a Tenant would take if it were checked: the role that it gives away, too.
    #[test]
    fn a_tenant_makes_a_namespace_and_gives_a_role_away() {
        let mut tenant = object("v1alpha1", "Tenant", json!({"owners": [{"kind": "User", "name": "u"}]}));
        tenant["metadata"] = json!({"name": "lilac"});
        let expected = sorted(&[
            written("namespaces"),
            written("networkpolicies.networking.k8s.io in lilac"),
            written("rolebindings.rbac.authorization.k8s.io in lilac"),
            vec!["bind clusterroles.rbac.authorization.k8s.io admin in lilac".to_owned()],
        ]);
        assert_eq!(of(&composed("tenant.yaml"), &tenant), Ok(expected));
        tenant["spec"] = json!({"isolation": "None"});
        assert_eq!(of(&composed("tenant.yaml"), &tenant), Ok(written("namespaces")), "no owners, no role");
    }

    /// One child, with what is before its template and what is in its metadata.
    fn one(before: &str, of: &str, metadata: &str) -> Acts {
        let name = if before.contains("forEach") { "n-${index}" } else { "n-${parent.metadata.name}" };
        let text = format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\n\
             related: [{{id: maps, apiVersion: v1, kind: ConfigMap, namespace: x}}]\nchildren:\n\
             - id: first\n  template: {{apiVersion: v1, kind: Service, metadata: {{name: a}}}}\n\
             - id: child\n{before}  template: {{{of}, metadata: {{name: \"{name}\"{metadata}}}}}\n"
        );
        Acts::Composed(Arc::new(Composition::read("x.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))))
    }

    #[test]
    fn what_an_object_does_not_settle_counts_as_there_and_anywhere() {
        const SECRET: &str = "apiVersion: v1, kind: Secret";
        let parent =
            object("v1", "Any", json!({"to": "b", "yes": true, "all": [{"ns": "c"}, {"ns": "d"}], "none": []}));
        for (before, metadata, places) in [
            ("", "", vec!["secrets in shop"]),
            ("", ", namespace: fixed", vec!["secrets in fixed"]),
            ("", ", namespace: \"${parent.spec.to}\"", vec!["secrets in b"]),
            ("", ", namespace: \"x-${parent.spec.to}\"", vec!["secrets in x-b"]),
            ("", ", namespace: \"${has(parent.spec.no) ? 'x' : null}\"", vec!["secrets in shop"]),
            // What others write, or what comes later.
            ("", ", namespace: \"${children.first.spec.to}\"", vec!["secrets in all"]),
            ("", ", namespace: \"${related.maps[0].data.to}\"", vec!["secrets in all"]),
            ("", ", namespace: \"${parent.status.to}\"", vec!["secrets in all"]),
            ("", ", namespace: \"${[parent].map(it, it.status.to)[0]}\"", vec!["secrets in all"]),
            ("", ", namespace: \"${parent['status'].to}\"", vec!["secrets in all"]),
            ("  includeWhen: [\"${parent.spec.yes}\"]\n", "", vec!["secrets in shop"]),
            ("  includeWhen: [\"${!parent.spec.yes}\"]\n", "", vec![]),
            ("  includeWhen: [\"${has(parent.metadata.labels)}\"]\n", "", vec![]),
            ("  includeWhen: [\"${has(parent.status)}\"]\n", "", vec!["secrets in shop"]),
            ("  includeWhen: [\"${related.maps.size() > 0}\"]\n", "", vec!["secrets in shop"]),
            ("  includeWhen: [\"${related.maps.size() > 0}\", \"${!parent.spec.yes}\"]\n", "", vec![]),
        ] {
            let expected = sorted(&[written("services in shop"), places.iter().flat_map(|it| written(it)).collect()]);
            assert_eq!(of(&one(before, SECRET, metadata), &parent), Ok(expected), "{before} {metadata}");
        }
        // A name that varies, so that several can be.
        for (list, metadata, places) in [
            ("parent.spec.all", ", namespace: \"${each.ns}\"", vec!["secrets in c", "secrets in d"]),
            ("parent.spec.all", "", vec!["secrets in shop"]),
            ("parent.spec.none", ", namespace: \"${each.ns}\"", vec![]),
            ("related.maps", ", namespace: \"${each.data.ns}\"", vec!["secrets in all"]),
            ("related.maps", ", namespace: \"${parent.spec.to}\"", vec!["secrets in b"]),
            ("has(parent.status) ? parent.status.all : []", ", namespace: \"${each.ns}\"", vec!["secrets in all"]),
        ] {
            let before = format!("  forEach: \"${{{list}}}\"\n");
            let acts = one(&before, SECRET, metadata);
            let expected = sorted(&[written("services in shop"), places.iter().flat_map(|it| written(it)).collect()]);
            assert_eq!(of(&acts, &parent), Ok(expected), "{list} {metadata}");
        }
        let role = one("", "apiVersion: rbac.authorization.k8s.io/v1, kind: Role", "");
        let said = of(&role, &parent).unwrap();
        assert!(said.contains(&"escalate roles.rbac.authorization.k8s.io in shop".to_owned()), "{said:?}");
        for (before, of_, metadata, says) in [
            ("", "apiVersion: e.com/v1, kind: Odd", "", "child: the API server does not serve e.com/v1 Odd"),
            ("", SECRET, ", namespace: \"${parent.spec.none}\"", "child.template.metadata.namespace: must be text"),
            (
                "",
                SECRET,
                ", namespace: \"${parent.spec.absent}\"",
                "child.template.metadata.namespace: there is no `absent`",
            ),
            (
                "",
                SECRET,
                ", namespace: \"${parent.spec.to + '/x'}\"",
                "child.template.metadata.namespace: is no namespace",
            ),
            ("  includeWhen: [\"${parent.spec.absent}\"]\n", SECRET, "", "child.includeWhen[0]: there is no `absent`"),
        ] {
            let wrong = of(&one(before, of_, metadata), &parent).unwrap_err();
            assert!(wrong.starts_with(says), "{wrong}");
        }
        // A type that is not served matters only where it is made.
        let excluded = one("  includeWhen: [\"${false}\"]\n", "apiVersion: e.com/v1, kind: Odd", "");
        assert_eq!(of(&excluded, &parent), Ok(written("services in shop")));
    }

    #[test]
    fn what_reaches_the_replicas_is_refused_to_every_author() {
        let source = json!({"kind": "ConfigMap", "namespace": "home", "name": "x"});
        let propagation =
            object("v1alpha1", "Propagation", json!({"source": source, "targets": {"namespaces": ["replicas"]}}));
        let mut policy = object(
            "v1alpha1",
            "ExpiryPolicy",
            json!({"target": {"apiVersion": "v1", "kind": "ConfigMap"}, "ttl": "1h"}),
        );
        policy["metadata"]["namespace"] = json!("replicas");
        for (acts, object, field) in [
            (Acts::Propagation, propagation, "spec.targets.namespaces: "),
            (Acts::Expiry, policy, "metadata.namespace: "),
        ] {
            let wrong = acts.actions(&object, &reach(true), &resources()).unwrap_err();
            assert!(wrong.starts_with(field) && wrong.contains("replicas is the namespace of the replicas"), "{wrong}");
        }
    }
}
