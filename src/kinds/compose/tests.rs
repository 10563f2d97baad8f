//! Compositions, from their file to the children they say.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::Composition;
use crate::{
    reconcile::children::{Adopt, Care, Compose, Composed, Deletion, Effort, Failure, Key, Type, Update, View},
    replica::term::Access,
};

const HEAD: &str = "apiVersion: leasehold.dev/v1alpha1\nkind: Composition\n";

fn read(text: &str) -> Composition {
    Composition::read("x.yaml", &format!("{HEAD}{text}")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(text: &str) -> Vec<String> {
    let text = format!("{HEAD}{text}");
    let errors = Composition::read("x.yaml", &text).map(|_| ()).expect_err("it is wrong");
    errors.violations().iter().map(|it| format!("{}:{} {}: {}", it.line, it.column, it.path, it.message)).collect()
}

/// A cluster of a few objects.
#[derive(Default)]
struct World {
    children: HashMap<(String, Option<String>, String), Arc<Json>>,
    related: BTreeMap<String, Vec<Arc<Json>>>,
}

impl World {
    fn compose(&self, composition: &Composition, parent: &Json) -> Result<Composed, Failure> {
        let child =
            |key: &Key| self.children.get(&(key.of.kind.clone(), key.namespace.clone(), key.name.clone())).cloned();
        let is_namespaced = |of: &Type| of.kind != "Namespace";
        let view = View { parent, child: &child, related: &self.related, is_namespaced: &is_namespaced };
        composition.compose(&view, Effort::Full).map(Option::unwrap)
    }

    fn apply(&mut self, composed: &Composed, status: &Json) {
        for child in &composed.children {
            let mut object = child.object.clone();
            object["status"] = status.clone();
            let Key { of, namespace, name } = child.key.clone();
            self.children.insert((of.kind.clone(), namespace, name), Arc::new(object));
        }
    }
}

fn names(composed: &Composed) -> Vec<String> {
    composed.children.iter().map(|child| child.key.to_string()).collect()
}

const CONFIG_MAP: &str = "apiVersion: v1, kind: ConfigMap";

fn parent(spec: Json) -> Json {
    json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec})
}

#[test]
fn a_tenant_comes_into_being_step_by_step() {
    let composition = shipped("tenant.yaml");
    let parent = json!({"metadata": {"name": "orchid"}, "spec": {
        "owners": [{"kind": "User", "name": "ada"}, {"kind": "ServiceAccount", "name": "ci", "namespace": "build"}],
        "quota": {"pods": "10"}, "isolation": "DenyIngress"}});
    let mut world = World::default();
    let first = world.compose(&composition, &parent).unwrap();
    assert_eq!(names(&first), ["Namespace orchid"]);
    let waiting: Vec<_> = first.waiting.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(waiting, ["quota", "owners", "isolation"]);

    world.apply(&first, &json!({"phase": "Active"}));
    let second = world.compose(&composition, &parent).unwrap();
    assert_eq!(
        names(&second),
        [
            "Namespace orchid",
            "ResourceQuota orchid/tenant",
            "RoleBinding orchid/tenant-owner-0",
            "RoleBinding orchid/tenant-owner-1",
            "NetworkPolicy orchid/tenant",
        ]
    );
    assert_eq!(second.waiting, []);
    assert_eq!(Json::Object(second.status), json!({"namespace": "orchid", "phase": "Active"}));
    assert_eq!(second.children[0].unready, None);
    assert_eq!(second.children[1].unready.as_deref(), Some("not there yet"));
    assert_eq!(second.children[1].object["spec"], json!({"hard": {"pods": "10"}}));
    assert_eq!(
        second.children[3].object["subjects"],
        json!([{"kind": "ServiceAccount", "name": "ci", "namespace": "build"}])
    );
}

fn shipped(file: &str) -> Composition {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
    Composition::read(file, &std::fs::read_to_string(path).unwrap()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A label of a namespace may allow its pods to be root on a node, or have another team's Secrets copied there.
#[test]
fn a_tenant_says_no_label_that_others_go_by() {
    let composition = shipped("tenant.yaml");
    for labels in [
        json!({}),
        json!({"pod-security.kubernetes.io/enforce": "privileged", "team": "other"}),
        json!({"enforce": "privileged", "tenant.leasehold.dev/x": "y", "leasehold.dev/shard": "z"}),
        json!({"": "x", "/": "x", "../pod-security.kubernetes.io/enforce": "privileged"}),
    ] {
        let parent = json!({"metadata": {"name": "orchid"}, "spec": {"labels": labels}});
        let composed = World::default().compose(&composition, &parent).unwrap();
        let said = composed.children[0].object["metadata"]["labels"].as_object().unwrap().clone();
        assert_eq!(said.len(), labels.as_object().unwrap().len() + 2, "{said:?}");
        for (name, value) in said {
            match name.as_str() {
                "pod-security.kubernetes.io/enforce" => assert_eq!(value, "baseline"),
                "pod-security.kubernetes.io/warn" => assert_eq!(value, "restricted"),
                own => assert!(own.starts_with("tenant.leasehold.dev/"), "{own}"),
            }
        }
    }
    let none = World::default().compose(&composition, &json!({"metadata": {"name": "orchid"}, "spec": {}})).unwrap();
    assert_eq!(none.children[0].object["metadata"]["labels"].as_object().unwrap().len(), 2);
}

/// A field that its last writer leaves out is set back to its default: ten pods would become one.
#[test]
fn a_web_app_keeps_its_pods_until_the_autoscaler_has_taken_over() {
    let composition = shipped("webapp.yaml");
    let ours =
        json!([{"manager": "leasehold/webapp", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
    let created =
        json!([{"manager": "leasehold/webapp", "operation": "Update", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
    // Of another's entry a replica keeps who wrote it, and not what.
    let theirs = json!([
        {"manager": "leasehold/webapp", "operation": "Apply", "fieldsV1": {"f:spec": {"f:selector": {}}}},
        {"manager": "horizontal-pod-autoscaler", "operation": "Update", "subresource": "scale"},
    ]);
    let autoscale = json!({"min": 2, "max": 20, "cpu": 80});
    for (name, spec, live, expected) in [
        ("new", json!({"replicas": 10}), None, Some(10)),
        ("new, autoscaled", json!({"replicas": 10, "autoscale": autoscale}), None, Some(10)),
        ("new, autoscaled, few", json!({"replicas": 1, "autoscale": autoscale}), None, Some(2)),
        ("still ours", json!({"replicas": 1, "autoscale": autoscale}), Some((10, &ours)), Some(10)),
        ("created, not applied yet", json!({"replicas": 1, "autoscale": autoscale}), Some((10, &created)), Some(10)),
        ("still ours, none", json!({"replicas": 0, "autoscale": autoscale}), Some((0, &ours)), Some(2)),
        ("taken over", json!({"replicas": 10, "autoscale": autoscale}), Some((13, &theirs)), None),
        ("given back", json!({"replicas": 4}), Some((13, &theirs)), Some(4)),
    ] {
        let mut spec = spec;
        spec["image"] = json!("nginx:1.29");
        let mut world = World::default();
        if let Some((replicas, managed)) = live {
            let live = json!({"metadata": {"name": "p", "managedFields": managed}, "spec": {"replicas": replicas}});
            world.children.insert(("Deployment".to_owned(), Some("ns".to_owned()), "p".to_owned()), Arc::new(live));
        }
        let composed = world.compose(&composition, &parent(spec)).unwrap();
        assert_eq!(composed.children[0].object["spec"].get("replicas"), expected.map(Json::from).as_ref(), "{name}");
    }
}

#[test]
fn each_makes_a_child_of_each_item_and_null_makes_none() {
    let composition = read(&format!(
        "children:\n- id: maps\n  forEach: ${{parent.spec.items}}\n  max: 3\n  template: {{{CONFIG_MAP}, metadata: {{name: \"c-${{index}}\"}}, data: {{v: \"${{each}}\"}}}}\n"
    ));
    for (items, expected) in [(json!([]), 0), (json!(null), 0), (json!(["a", "b"]), 2)] {
        let composed = World::default().compose(&composition, &parent(json!({"items": items}))).unwrap();
        assert_eq!(composed.children.len(), expected, "{items}");
    }
    let many = World::default().compose(&composition, &parent(json!({"items": [1, 2, 3, 4]}))).unwrap_err();
    assert_eq!(many.reason, "TooManyChildren");
    let wrong = World::default().compose(&composition, &parent(json!({"items": "x"}))).unwrap_err();
    assert_eq!((wrong.reason, &*wrong.message), ("ExpressionFailed", "maps.forEach: must be a list or a mapping"));
    let absent = World::default().compose(&composition, &parent(json!({}))).unwrap_err();
    assert_eq!((absent.reason, &*absent.message), ("ExpressionFailed", "maps.forEach: there is no `items`"));
}

#[test]
fn a_mapping_is_gone_through_in_the_order_of_its_keys() {
    let composition = read(&format!(
        "children:\n- id: maps\n  forEach: ${{parent.spec.items}}\n  template: {{{CONFIG_MAP}, metadata: {{name: \"${{each.key}}\"}}, data: {{v: \"${{each.value}}\"}}}}\n"
    ));
    let composed = World::default().compose(&composition, &parent(json!({"items": {"b": 1, "a": 2, "c": 3}}))).unwrap();
    assert_eq!(names(&composed), ["ConfigMap ns/a", "ConfigMap ns/b", "ConfigMap ns/c"]);
}

#[test]
fn what_refers_to_a_child_waits_for_it_and_goes_with_it() {
    let composition = read(&format!(
        "children:\n\
         - id: second\n  template: {{{CONFIG_MAP}, metadata: {{name: second}}, data: {{a: \"${{children.first.data.a}}\"}}}}\n\
         - id: first\n  includeWhen: [\"${{parent.spec.on}}\"]\n  template: {{{CONFIG_MAP}, metadata: {{name: first}}, data: {{a: x}}}}\n\
         status: {{a: \"${{children.first.data.a}}\"}}\n"
    ));
    let on = parent(json!({"on": true}));
    let mut world = World::default();
    let one = world.compose(&composition, &on).unwrap();
    assert_eq!((names(&one), one.waiting.len(), one.status.len()), (vec!["ConfigMap ns/first".to_owned()], 1, 0));
    world.apply(&one, &json!({}));
    let both = world.compose(&composition, &on).unwrap();
    assert_eq!((names(&both).len(), both.waiting.len()), (2, 0));
    assert_eq!(both.status["a"], "x");
    let none = world.compose(&composition, &parent(json!({"on": false}))).unwrap();
    assert_eq!((none.children.len(), none.waiting.len()), (0, 0), "what refers to none is none");
}

#[test]
fn what_is_related_is_a_list_and_may_come() {
    let composition = read(&format!(
        "related:\n- {{id: base, apiVersion: v1, kind: ConfigMap, namespace: home, matchLabels: {{base: \"yes\"}}}}\n\
         children:\n- id: copy\n  template: {{{CONFIG_MAP}, metadata: {{name: copy}}, data: {{v: \"${{related.base[0].data.v}}\"}}}}\n"
    ));
    let wanted = &composition.related()["base"];
    assert_eq!(
        (wanted.namespace.as_deref(), wanted.name.as_deref(), wanted.labels["base"].as_str()),
        (Some("home"), None, "yes")
    );
    let mut world = World::default();
    world.related.insert("base".to_owned(), Vec::new());
    let waits = world.compose(&composition, &parent(json!({}))).unwrap();
    assert_eq!((waits.children.len(), &*waits.waiting[0].reason), (0, "template.data.v: the list is shorter"));
    world.related.insert("base".to_owned(), vec![Arc::new(json!({"data": {"v": "x"}}))]);
    let composed = world.compose(&composition, &parent(json!({}))).unwrap();
    assert_eq!(composed.children[0].object["data"]["v"], "x");
}

/// What is applied does not depend on what is told of it.
#[test]
fn a_status_or_ready_when_that_fails_holds_up_no_child() {
    let composition = read(&format!(
        "children:\n\
         - id: a\n  template: {{{CONFIG_MAP}, metadata: {{name: a}}, data: {{v: x}}}}\n  readyWhen: [\"${{self.data.v / 0 == 1}}\", \"${{self.data.v}}\"]\n\
         - id: b\n  template: {{{CONFIG_MAP}, metadata: {{name: b}}, data: {{v: \"${{children.a.data.v}}\"}}}}\n\
         status: {{bad: \"${{1 / 0}}\", absent: \"${{parent.spec.absent}}\", good: \"${{children.a.data.v}}\"}}\n"
    ));
    let mut world = World::default();
    let first = world.compose(&composition, &parent(json!({}))).expect("a status that fails stops nothing");
    assert_eq!((names(&first), first.failed.len()), (vec!["ConfigMap ns/a".to_owned()], 1));
    world.apply(&first, &json!({}));
    let both = world.compose(&composition, &parent(json!({}))).expect("a readyWhen that fails stops nothing");
    assert_eq!(names(&both), ["ConfigMap ns/a", "ConfigMap ns/b"]);
    assert_eq!(Json::Object(both.status), json!({"good": "x"}), "the other fields have their values");
    assert_eq!(both.failed.len(), 2, "{:?}", both.failed);
    assert!(both.failed[0].starts_with("a.readyWhen[0]: "), "{:?}", both.failed);
    assert!(both.failed[1].starts_with("status.bad: "), "{:?}", both.failed);
    assert!(both.children[0].unready.as_ref().is_some_and(|why| why.contains("readyWhen[0]")));
}

#[test]
fn what_cannot_be_carried_out_says_which_child_where_and_why() {
    let child = |name: &str, rest: &str| {
        format!(
            "- id: {name}\n  template: {{{CONFIG_MAP}, metadata: {{{rest}}}, data: {{v: \"${{parent.spec.v}}\"}}}}\n"
        )
    };
    for (children, spec, reason, message) in [
        (child("a", "name: x"), json!({}), "ExpressionFailed", "a.template.data.v: there is no `v`"),
        (child("a", "name: \"${parent.spec.v}\""), json!({"v": ""}), "ExpressionFailed", "must be text, and not empty"),
        (
            child("a", "name: \"${parent.spec.v}\""),
            json!({"v": "x/scale?y="}),
            "ExpressionFailed",
            "name: is no name: write",
        ),
        (
            child("a", "name: \"${parent.spec.v}\""),
            json!({"v": "../../victim"}),
            "ExpressionFailed",
            "name: is no name: write",
        ),
        (child("a", "name: \"${parent.spec.n}\""), json!({"v": "", "n": 3}), "ExpressionFailed", "must be text"),
        (
            child("a", "name: x") + &child("b", "name: x"),
            json!({"v": ""}),
            "DuplicateChild",
            "children a and b both make ConfigMap ns/x: give one of them another name",
        ),
        (
            child("a", "name: x, labels: \"${parent.spec.v}\""),
            json!({"v": "text"}),
            "ExpressionFailed",
            "a.template.metadata.labels: must be a mapping",
        ),
        (
            format!("- id: c\n  template: {{{CONFIG_MAP}, metadata: {{name: c}}}}\n")
                + &child("a", "name: x, labels: {a: \"${children.c.metadata.name + parent.spec.absent}\"}"),
            json!({"v": "text"}),
            "ExpressionFailed",
            "a.template.metadata.labels.a: there is no `absent`",
        ),
        (child("a", "name: x"), json!({"v": "y".repeat(2 << 20)}), "ChildTooLarge", "and the most is"),
    ] {
        let mut world = World::default();
        let c = json!({"metadata": {"name": "c"}});
        world.children.insert(("ConfigMap".to_owned(), Some("ns".to_owned()), "c".to_owned()), Arc::new(c));
        let failure = world.compose(&read(&format!("children:\n{children}")), &parent(spec)).expect_err(message);
        assert_eq!(failure.reason, reason, "{}", failure.message);
        assert!(failure.message.contains(message), "{}", failure.message);
    }
}

#[test]
fn every_mistake_of_a_file_is_shown_at_its_place() {
    let text = "\
related:
- {id: base, apiVersion: v1, kind: ConfigMap, names: [x]}
- {id: odd, apiVersion: v1, kind: ConfigMap, name: 'a?b', matchLabels: {'x,y': z}}
- {id: byname, apiVersion: v1, kind: ConfigMap, name: \"${parent.x}\", matchLabels: {x: \"y,z=w\"}}
children:
- id: ns
  after: [nope]
  includeWhen: [\"has(parent.spec)\"]
  template:
    apiVersion: v1
    kind: ${parent.spec.kind}
    metadata: {name: x}
- id: ns
  forEach: ${parent.spec.list}
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: fixed, ownerReferences: [], labels: {leasehold.dev/x: y}}
    data: {a: \"${chidren.ns}\", b: \"${each.b}${self}\"}
- id: other
  template:
    apiVersion: v1
    kind: ConfigMap
    metadata: {name: \"${self.x}\", labels: text}
- id: Bad
  readyWhen: [\"${children.ns.x}\"]
  template: {apiVersion: v1, kind: ConfigMap, metadata: {}}
  wieght: 3
status: {conditions: [], x: \"${children.gone.y}\"}
";
    let shown = errors(text).join("\n");
    for expected in [
        "4:47 related[0].names: unknown field",
        "9:11 children[0].after[0]: no child has the id `nope`",
        "10:17 children[0].includeWhen[0]: expected one expression",
        "13:11 children[0].template.kind: must be plain text",
        "15:7 children[1].id: the id `ns` is given twice",
        "children[1].template.metadata.ownerReferences: who owns a child",
        "children[1].template.metadata.labels.leasehold.dev/x: is the engine's",
        "children[1].template.data.a: `${chidren.ns}`: unknown name `chidren`",
        "related[1].name: \"a?b\" is no name: write",
        "related[1].matchLabels: \"x,y\" is no key of a label",
        "related[2].name: must be plain text",
        "related[2].matchLabels.x: \"y,z=w\" is no value of a label",
        "children[2].template.metadata.name: must not refer to `self`",
        "children[2].template.metadata.labels: expected a mapping",
        "children[1].template.metadata.name: with a forEach the name needs",
        "children[3].id: `Bad` is no id",
        "children[3].readyWhen[0]: readyWhen is about one child",
        "children[3].template.metadata.name: missing",
        "children[3].wieght: unknown field",
        "status.conditions: is written by the engine",
        "no child has the id `gone`; there are ns, other",
    ] {
        assert!(shown.contains(expected), "{expected}\n-- in --\n{shown}");
    }
}

#[test]
fn a_type_stands_in_one_version() {
    let child = |id: &str, version: &str| {
        format!("- {{id: {id}, template: {{apiVersion: apps/{version}, kind: Deployment, metadata: {{name: x}}}}}}\n")
    };
    let text = format!("children:\n{}{}", child("a", "v1"), child("b", "v1beta1"));
    let wrong = "children: b is apps/v1beta1 Deployment, and a is apps/v1 Deployment: one type in two versions";
    assert!(errors(&text)[0].contains(wrong), "{:?}", errors(&text));
}

#[test]
fn a_circle_is_named() {
    let child = |id: &str, after: &str| {
        format!("- {{id: {id}, after: [{after}], template: {{{CONFIG_MAP}, metadata: {{name: {id}}}}}}}\n")
    };
    let text = format!("children:\n{}{}{}", child("a", "b"), child("b", "c"), child("c", "b"));
    assert_eq!(errors(&text), ["5:8 children: each waits for another: b -> c -> b; break the circle"]);
    assert!(errors(&format!("children:\n{}", child("a", "a")))[0].contains("a -> a"));
}

#[test]
fn a_template_sees_its_child_as_it_is_and_without_fields_before_it_is_there() {
    let composition = read(&format!(
        "children:\n- id: a\n  forEach: ${{parent.spec.names}}\n  template: {{{CONFIG_MAP}, metadata: {{name: \"${{each}}\"}}, data: {{v: \"${{has(self.status) ? self.status.v : 'none'}}\"}}}}\n"
    ));
    let parent = parent(json!({"names": ["x", "y"]}));
    let mut world = World::default();
    let first = world.compose(&composition, &parent).unwrap();
    assert!(first.children.iter().all(|child| child.object["data"]["v"] == "none"));
    world.apply(&first, &json!({"v": "seen"}));
    let second = world.compose(&composition, &parent).unwrap();
    assert!(second.children.iter().all(|child| child.object["data"]["v"] == "seen"), "{:?}", second.children);
}

#[test]
fn what_writes_roles_may_escalate_those_and_no_others() {
    let composition = read(
        "children:\n- id: role\n  template: {apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: x}, rules: []}\n",
    );
    assert_eq!(composition.rights(), [Access::new("escalate", "rbac.authorization.k8s.io", "roles")]);
}

#[test]
fn a_composition_needs_children() {
    assert!(errors("")[0].contains("list at least one child"));
    assert!(errors("children: []\n")[0].contains("list at least one child"));
    assert!(errors("children: {}\n")[0].contains("expected a list"));
}

proptest! {
    /// The same of the same, whatever the spec: nothing in it depends on chance or on the order of a hash.
    #[test]
    fn composing_is_deterministic(keys in prop::collection::btree_map("[a-z]{1,8}", any::<i32>(), 0..20)) {
        let composition = read(&format!(
            "children:\n- id: maps\n  template: {{{CONFIG_MAP}, metadata: {{name: x}}, data: {{v: \"${{parent.spec.items.map(k, k).join(',')}}\"}}}}\n"
        ));
        let parent = parent(json!({"items": keys}));
        let composed = World::default().compose(&composition, &parent).unwrap();
        let expected: Vec<_> = keys.keys().cloned().collect();
        prop_assert_eq!(&composed.children[0].object["data"]["v"], &json!(expected.join(",")));
    }
}

mod admission {
    use super::*;
    use crate::kinds::compose::admission::{fill, judge};

    fn shipped() -> Composition {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tenant.yaml");
        Composition::read("tenant.yaml", &std::fs::read_to_string(file).unwrap())
            .unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn tenant(spec: Json) -> Json {
        json!({"metadata": {"name": "lilac"}, "spec": spec})
    }

    /// What a Tenant is refused for, beside that namespace.
    fn refused(tenant: &Json, old: &Json, namespace: Option<Json>) -> Option<String> {
        let shipped = shipped();
        let admission = shipped.admission.as_ref().unwrap();
        let found = BTreeMap::from([("namespace".to_owned(), namespace)]);
        judge(admission, tenant, old, &json!({"username": "eve", "groups": []}), &found)
            .err()
            .map(|denied| denied.message)
    }

    #[test]
    fn a_tenant_takes_no_namespace_of_others() {
        let lilac = tenant(json!({}));
        let owned = |kind: &str, name: &str| {
            Some(json!({"metadata": {"name": "lilac", "ownerReferences": [{"kind": kind, "name": name}]}}))
        };
        assert_eq!(refused(&lilac, &Json::Null, None), None);
        assert_eq!(refused(&lilac, &Json::Null, owned("Tenant", "lilac")), None);
        for namespace in [Some(json!({"metadata": {"name": "lilac"}})), owned("Team", "lilac"), owned("Tenant", "rose")]
        {
            let said = refused(&lilac, &Json::Null, namespace.clone()).expect("it is refused");
            assert!(said.starts_with("metadata.name: there is a namespace lilac already"), "{said}");
            assert_eq!(refused(&lilac, &lilac, namespace), None, "it is a matter of creation");
        }
    }

    #[test]
    fn a_tenant_takes_no_labels_of_the_platform() {
        for (label, is_refused) in [
            ("team", false),
            ("example.com/team", false),
            ("app.kubernetes.io/part-of", false),
            ("mykubernetes.io/x", false),
            ("pod-security.kubernetes.io/enforce", true),
            ("kubernetes.io/metadata.name", true),
            ("policy.k8s.io/x", true),
            ("leasehold.dev/shard", true),
            ("a.leasehold.dev/copies", true),
        ] {
            let tenant = tenant(json!({"labels": {"team": "x", label: "privileged"}}));
            let said = refused(&tenant, &Json::Null, None);
            assert_eq!(said.is_some(), is_refused, "{label}: {said:?}");
            assert_eq!(refused(&tenant, &tenant, None).is_some(), is_refused, "{label}, by an update");
        }
        assert_eq!(refused(&tenant(json!({})), &Json::Null, None), None);
    }

    #[test]
    fn what_is_left_out_is_filled_in_and_what_is_there_stays() {
        let shipped = shipped();
        let admission = shipped.admission.as_ref().unwrap();
        let filled = |mut object: Json| {
            fill(admission, &json!({}), &Json::Null, &mut object).unwrap();
            object
        };
        assert_eq!(filled(tenant(json!({})))["spec"], json!({"labels": {"team": "lilac"}}));
        let own = tenant(json!({"labels": {"team": "rose", "x": "y"}, "quota": {"pods": "1"}}));
        assert_eq!(filled(own.clone()), own);
        // Its name is made by the API server, later.
        let unnamed = json!({"metadata": {"generateName": "lilac-"}, "spec": {}});
        assert_eq!(filled(unnamed.clone()), unnamed);
    }

    /// What docs/webhooks.md says of its example: a size is filled in, and a creation needs the class that it names.
    #[test]
    fn the_admission_of_the_page_fills_in_the_size_and_asks_for_the_class() {
        let examples = crate::kinds::examples(include_str!("../../../docs/webhooks.md"));
        let example = examples.iter().find(|example| example.get("admission").is_some()).unwrap();
        let child = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "${parent.metadata.name}"}});
        let mut file = json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "Composition", "children": [{"id": "a", "template": child}]});
        file["admission"] = example["admission"].clone();
        let composition = Composition::read("x.yaml", &file.to_string()).unwrap_or_else(|errors| panic!("{errors}"));
        let admission = composition.admission.as_ref().unwrap();
        let mut widget = json!({"metadata": {"name": "w"}, "spec": {"class": "fast"}});
        fill(admission, &json!({}), &Json::Null, &mut widget).unwrap();
        assert_eq!(widget["spec"], json!({"class": "fast", "size": 3}));
        let user = json!({"username": "eve", "groups": []});
        let judged = |old: &Json, class: Option<Json>| {
            judge(admission, &widget, old, &user, &BTreeMap::from([("class".to_owned(), class)]))
        };
        assert!(judged(&Json::Null, Some(json!({"metadata": {"name": "fast"}}))).is_ok());
        let denied = judged(&Json::Null, None).unwrap_err().message;
        assert!(denied.contains("there is no WidgetClass fast"), "{denied}");
        assert!(judged(&widget, None).is_ok(), "the rule is about creations");
    }

    #[test]
    fn every_mistake_is_told_at_its_line() {
        const CHILD: &str = "children:\n- {id: a, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: \"${parent.metadata.name}\"}}}\n";
        for (admission, expected) in [
            ("{rules: [{rule: \"${true}\"}]}", "admission.rules[0].message: missing"),
            ("{rules: [{message: x}]}", "admission.rules[0].rule: missing"),
            (
                "{rules: [{rule: \"${children.a}\", message: x}]}",
                "admission.rules[0].rule: admission comes before there are children",
            ),
            (
                "{rules: [{rule: \"${related.b}\", message: x}]}",
                "admission.rules[0].rule: no lookup of admission has the id `b`",
            ),
            (
                "{rules: [{rule: \"${true}\", message: x, on: Delete}]}",
                "admission.rules[0].on: expected one of Create, Write",
            ),
            ("{defaults: {status: {}}}", "admission.defaults: expected a mapping of `spec`"),
            ("{lookups: [{id: b, apiVersion: v1, kind: Namespace}]}", "admission.lookups[0].name: missing"),
            ("{what: 1}", "admission.what: unknown field; known here: defaults, lookups, rules"),
        ] {
            let found = errors(&format!("{CHILD}admission: {admission}\n"));
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{admission}\nexpected {expected}\nfound    {found:#?}"
            );
        }
        let found = errors(&CHILD.replace("${parent.metadata.name}", "${user.username}"));
        assert!(found.len() == 1 && found[0].contains("are of admission only"), "{found:#?}");
    }
}

/// Where children can be is told from the object alone, and holds for each that is ever made of it.
mod footprint {
    use super::*;
    use crate::{kinds::compose::Print, webhooks::action::Place};

    /// A child in each way in which a namespace can be said, and chosen.
    const ODD: &str = "related: [{id: maps, apiVersion: v1, kind: ConfigMap, namespace: x}]\nchildren:\n\
        - id: first\n  template: {apiVersion: v1, kind: Service, metadata: {name: a, namespace: \"${parent.spec.to}\"}}\n\
        - id: second\n  template: {apiVersion: v1, kind: Secret, metadata: {name: b, namespace: \"${children.first.status.ns}\"}}\n\
        - id: third\n  includeWhen: [\"${has(parent.status)}\"]\n  template: {apiVersion: v1, kind: Pod, metadata: {name: c}}\n\
        - id: fourth\n  forEach: \"${related.maps}\"\n  template: {apiVersion: batch/v1, kind: Job, metadata: {name: \"n-${index}\", namespace: \"${each.ns}\"}}\n\
        - id: fifth\n  forEach: \"${parent.spec.all}\"\n  includeWhen: [\"${parent.spec.yes}\"]\n  template: {apiVersion: v1, kind: Event, metadata: {name: \"n-${index}\", namespace: \"${each}\"}}\n";

    fn shipped(file: &str) -> Composition {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file);
        Composition::read(file, &std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn spec() -> impl Strategy<Value = Json> {
        let owners = prop::collection::vec("[a-z]{1,3}", 0..3);
        let words = prop::collection::vec("[a-z]{1,3}", 0..3);
        let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
        ("[a-z]{1,3}", words, owners, flags).prop_map(|(to, all, owners, (host, scale, wall, yes))| {
            let owners: Vec<_> = owners.iter().map(|name| json!({"kind": "User", "name": name})).collect();
            let mut spec = json!({"image": "x", "to": to, "all": all, "owners": owners, "yes": yes});
            let mut say = |is: bool, field: &str, value: Json| {
                if is {
                    spec[field] = value
                }
            };
            say(host, "host", json!("a.b"));
            say(host, "quota", json!({"pods": "1"}));
            say(scale, "autoscale", json!({"min": 1, "max": 2, "cpu": 50}));
            say(scale, "limits", json!({}));
            say(wall, "isolation", json!("None"));
            spec
        })
    }

    proptest! {
        #[test]
        fn every_child_lies_where_it_was_foretold(
            spec in spec(), which in 0..3_usize, ns in "[a-z]{1,3}", maps in prop::collection::vec("[a-z]{1,3}", 0..3), status in any::<bool>(),
        ) {
            let composition = match which {
                0 => shipped("webapp.yaml"),
                1 => shipped("tenant.yaml"),
                _ => read(ODD),
            };
            let mut metadata = json!({"name": "o"});
            if which != 1 {
                metadata["namespace"] = json!("home");
            }
            let mut parent = json!({"apiVersion": "e.com/v1", "kind": "O", "metadata": metadata, "spec": spec});
            let foretold = composition.footprint(&parent, &|of| Some(of.kind != "Namespace")).unwrap();
            if status {
                parent["status"] = json!({});
            }
            let related = maps.iter().map(|ns| Arc::new(json!({"ns": ns}))).collect();
            let mut world = World { related: [("maps".to_owned(), related)].into(), ..World::default() };
            let mut made = 0;
            for _ in 0..5 {
                let composed = world.compose(&composition, &parent).unwrap();
                for child in &composed.children {
                    let own = child.key.namespace.clone().map_or(Place::Cluster, Place::Namespace);
                    let lies = |print: &Print| print.of == child.key.of && (print.place == own || print.place == Place::Anywhere);
                    prop_assert!(foretold.iter().any(lies), "{} of {}: {:?}", child.key, parent, foretold);
                }
                made = composed.children.len();
                world.apply(&composed, &json!({"ns": ns, "phase": "Active", "hard": {}}));
            }
            prop_assert!(made > 0);
        }
    }
}

#[test]
fn settings_of_state_are_read_and_what_makes_no_sense_is_refused() {
    let child =
        |more: &str| format!("children:\n- {{id: a{more}, template: {{{CONFIG_MAP}, metadata: {{name: x}}}}}}\n");
    let composed = |more: &str, spec: Json| World::default().compose(&read(&child(more)), &parent(spec));
    let care = |more: &str, spec: Json| composed(more, spec).unwrap().children[0].care;
    assert_eq!(care("", json!({})), Care::default());
    let all = care(", deletion: Keep, adopt: IfUnowned, update: OnDelete", json!({}));
    assert_eq!((all.deletion, all.adopt, all.update), (Deletion::Keep, Adopt::IfUnowned, Update::OnDelete));
    let said = ", deletion: \"${parent.spec.?keep.orValue(false) ? 'Keep' : 'Delete'}\"";
    assert_eq!(care(said, json!({})).deletion, Deletion::Delete);
    assert_eq!(care(said, json!({"keep": true})).deletion, Deletion::Keep);
    let wrong = composed(", deletion: \"${parent.spec.how}\"", json!({"how": "Never"})).unwrap_err();
    assert_eq!(wrong.message, "a.deletion: must be `Delete` or `Keep`");

    let two = |a: &str, b: &str| {
        format!(
            "children:\n- {{id: a{a}, template: {{{CONFIG_MAP}, metadata: {{name: x}}}}}}\n- {{id: b{b}, template: {{{CONFIG_MAP}, metadata: {{name: y}}}}}}\n"
        )
    };
    for (text, expected) in [
        (child(", deletion: Never"), "children[0].deletion: expected `Delete`, `Keep`, or one expression, found the text \"Never\""),
        (child(", adopt: Sometimes"), "children[0].adopt: "),
        (child(", update: Replace"), "children[0].update: "),
        (child(", update: Recreate, deletion: Keep"), "children[0].update: would delete a child that is kept"),
        (child(", update: Recreate, deletion: \"${parent.spec.x}\""), "children[0].update: would delete"),
        (two("", ", deletion: \"${children.a.data.x}\""), "children[1].deletion: sees `parent`, `each` and `index` only"),
        (two("", ", after: [{id: a, ready: true}]"), "children.b.after: a has no readyWhen"),
        (two("", ", after: [{id: c}]"), "children[1].after[0]: no child has the id `c`"),
        (two("", ", after: [{id: a, x: 1}]"), "children[1].after[0].x: unknown field"),
        (two("", ", after: [1]"), "children[1].after[0]: expected the id of a child, or `{id: …, ready: true}`"),
        (
            two(", readyWhen: [\"${self.x}\"], after: [b]", ", after: [{id: a, ready: true}]"),
            "children: each waits for another: a -> b -> a; break the circle",
        ),
        (
            two(", after: [b]", ", includeWhen: [\"${children.?a.hasValue()}\"]"),
            "children: each waits for another: a -> b -> a; break the circle",
        ),
        (
            "children:\n- {id: s, template: {apiVersion: v1, kind: Namespace, metadata: {name: \"${parent.metadata.name}\"}}}\n- {id: a, deletion: Keep, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: \"${parent.metadata.name}\"}}}\n".to_owned(),
            "children.a.deletion: lies in the namespace that s makes, and goes with it",
        ),
    ] {
        let found = errors(&text);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
    }
}

#[test]
fn a_dependent_is_said_and_held_until_the_other_is_ready() {
    let composition = read(&format!(
        "children:\n- {{id: db, readyWhen: [\"${{self.status.up}}\"], template: {{{CONFIG_MAP}, metadata: {{name: db}}}}}}\n\
         - {{id: app, after: [{{id: db, ready: true}}], template: {{{CONFIG_MAP}, metadata: {{name: app}}}}}}\n\
         - {{id: web, after: [app], template: {{{CONFIG_MAP}, metadata: {{name: web}}}}}}\n"
    ));
    let order = composition.order();
    let depends: Vec<_> = order.depends["web"].iter().map(String::as_str).collect();
    assert_eq!((depends, order.explicit.len()), (vec!["app", "db"], 2));
    let mut world = World::default();
    let first = world.compose(&composition, &parent(json!({}))).unwrap();
    assert_eq!(names(&first), ["ConfigMap ns/db"], "it has to be there first");
    world.apply(&first, &json!({"up": false}));
    let held = |composed: &Composed| composed.children.iter().map(|it| it.held.clone()).collect::<Vec<_>>();
    let second = world.compose(&composition, &parent(json!({}))).unwrap();
    assert_eq!(names(&second), ["ConfigMap ns/db", "ConfigMap ns/app"]);
    assert_eq!(held(&second), [None, Some("until db is ready: ConfigMap ns/db: self.status.up".to_owned())]);
    assert_eq!(second.waiting[0].id, "web");
    world.apply(&first, &json!({"up": true}));
    let third = world.compose(&composition, &parent(json!({}))).unwrap();
    assert_eq!(held(&third), [None, None]);
    // One that is ready no longer holds changes up, and takes nothing away.
    world.apply(&third, &json!({"up": false}));
    let fourth = world.compose(&composition, &parent(json!({}))).unwrap();
    assert_eq!((names(&fourth).len(), fourth.waiting.len(), held(&fourth)[1].is_some()), (3, 0, true));
}

#[test]
fn an_optional_reference_leaves_the_referrer_where_the_other_is_absent() {
    let composition = read(&format!(
        "children:\n- {{id: extra, includeWhen: [\"${{parent.spec.extra}}\"], template: {{{CONFIG_MAP}, metadata: {{name: extra}}}}}}\n\
         - {{id: app, template: {{{CONFIG_MAP}, metadata: {{name: app}}, data: {{x: \"${{children.?extra.metadata.name.orValue('none')}}\"}}}}}}\n\
         status: {{has: \"${{children.?extra.hasValue()}}\"}}\n"
    ));
    let mut world = World::default();
    let without = world.compose(&composition, &parent(json!({"extra": false}))).unwrap();
    assert_eq!(
        (names(&without), &without.children[0].object["data"]["x"]),
        (vec!["ConfigMap ns/app".to_owned()], &json!("none"))
    );
    assert_eq!(without.status["has"], json!(false));
    // One that comes is waited for.
    let coming = world.compose(&composition, &parent(json!({"extra": true}))).unwrap();
    assert_eq!((names(&coming), coming.waiting.len()), (vec!["ConfigMap ns/extra".to_owned()], 1));
    world.apply(&coming, &json!({}));
    let with = world.compose(&composition, &parent(json!({"extra": true}))).unwrap();
    assert_eq!((&with.children[1].object["data"]["x"], &with.status["has"]), (&json!("extra"), &json!(true)));
    assert!(errors("related: [{id: r, apiVersion: v1, kind: Secret}]\nchildren: [{id: a, template: {apiVersion: v1, kind: Secret, metadata: {name: \"${related.?r}\"}}}]\n")[0].contains("no optional value"));
}

#[test]
fn generated_values_are_asked_for_in_a_secret_only_and_no_expression_sees_them() {
    let secret = |more: &str, body: &str| {
        format!(
            "children:\n- {{id: keys{more}, template: {{apiVersion: v1, kind: Secret, metadata: {{name: keys}}{body}}}}}\n"
        )
    };
    let generate = ", generate: {password: {length: 24}, key: {characters: Bytes}}";
    let composition = read(
        &(secret(&format!("{generate}, renew: \"${{parent.spec.?revision.orValue(1)}}\""), ", data: {user: YQ==}")
            + "- {id: spy, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: spy}, data: {all: \"${json.marshal(children.keys)}\"}}}\n\
           status: {all: \"${json.marshal(children.keys)}\"}\n"),
    );
    let mut world = World::default();
    let first = world.compose(&composition, &parent(json!({}))).unwrap();
    let asked = first.children[0].generate.clone().unwrap();
    assert_eq!(asked.values.keys().collect::<Vec<_>>(), ["key", "password"]);
    assert_eq!(
        (asked.values["password"].length, asked.values["key"].length, asked.renew.as_deref()),
        (24, 32, Some("1"))
    );
    assert_eq!(first.children[0].object["data"], json!({"user": "YQ=="}));
    // What is there is not seen, even where the Secret does not say itself what was generated in it.
    let mut there = first.clone();
    there.children[0].object["data"] = json!({"user": "YQ==", "password": "geheim", "key": "geheim"});
    world.apply(&there, &json!({}));
    let second = world.compose(&composition, &parent(json!({"revision": "b"}))).unwrap();
    let all = format!("{:?}{:?}", second.children, second.status);
    assert!(all.contains("YQ==") && !all.contains("geheim"), "{all}");
    assert_eq!(second.children[0].generate.as_ref().unwrap().renew.as_deref(), Some("b"));
    let odd = world.compose(&composition, &parent(json!({"revision": ["x"]}))).unwrap_err();
    assert!(odd.message.starts_with("keys.renew: must be text"), "{}", odd.message);

    for (text, expected) in [
        (secret(", renew: x", ""), "children[0].renew: is of a `generate`; remove it"),
        (secret(", generate: {}", ""), "children[0].generate: expected a mapping of keys"),
        (
            secret(", generate: {password: {length: 4}}", ""),
            "children[0].generate.password.length: expected a whole number from 16 to 1024",
        ),
        (secret(", generate: {password: {characters: Emoji}}", ""), "children[0].generate.password.characters: "),
        (secret(", generate: {password: {size: 4}}", ""), "children[0].generate.password.size: unknown field"),
        (secret(", generate: {\"a b\": {}}", ""), "children[0].generate.a b: is no key of a Secret"),
        (secret(&format!("{generate}, update: Recreate"), ""), "children[0].update: would make new values"),
        (secret(generate, ", data: {password: x}"), "children[0].template.data.password: is generated"),
        (secret(generate, ", data: \"${parent.spec.data}\""), "children[0].template.data: must be a mapping"),
        (secret(generate, ", stringData: {user: a}"), "children[0].template.stringData: is written once only"),
        (secret(generate, ", immutable: true"), "children[0].template.immutable: "),
        (
            secret(&format!("{generate}, renew: \"${{self.metadata.uid}}\""), ""),
            "children[0].renew: sees `parent`, `each` and `index` only",
        ),
        (
            format!("children:\n- {{id: a{generate}, template: {{{CONFIG_MAP}, metadata: {{name: x}}}}}}\n"),
            "children[0].template: values are generated in a Secret only",
        ),
    ] {
        let found = errors(&text);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
    }
}

/// The examples of config/examples: what each of them shows, step by step.
mod examples {
    use super::*;

    fn example(file: &str) -> Composition {
        shipped(&format!("examples/{file}"))
    }

    fn numbered(kind: &str, numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|number| format!("{kind} ns/p-{number}")).collect()
    }

    #[test]
    fn cats_start_one_after_the_other_and_none_goes_for_another() {
        let composition = example("catset.yaml");
        let spec = |replicas: u32| parent(json!({"replicas": replicas, "storage": "1Gi", "image": "x"}));
        let mut world = World { related: [("cats".to_owned(), vec![])].into(), ..World::default() };
        let first = world.compose(&composition, &spec(3)).unwrap();
        assert_eq!(names(&first), numbered("PersistentVolumeClaim", 0..3));
        assert_eq!((first.children[0].care.deletion, first.waiting[0].id.as_str()), (Deletion::Keep, "pods"));
        world.apply(&first, &json!({}));
        for (ready, replicas, pods) in [
            (&[][..], 3, 1),
            (&[false], 3, 1),
            (&[true], 3, 2),
            (&[true, false], 3, 2),
            (&[true, true], 3, 3),
            (&[false, false, true], 3, 3),
            (&[true, true, true], 2, 2),
        ] {
            let pod = |(number, ready): (usize, &bool)| {
                let labels = json!({"examples.leasehold.dev/part": "cat", "examples.leasehold.dev/catset": "p"});
                let status = if *ready { "True" } else { "False" };
                Arc::new(
                    json!({"metadata": {"name": format!("p-{number}"), "namespace": "ns", "labels": labels}, "status": {"conditions": [{"type": "Ready", "status": status}]}}),
                )
            };
            let foreign = json!({"metadata": {"name": "other-0", "namespace": "ns", "labels": {"examples.leasehold.dev/part": "cat"}}});
            let all = ready.iter().enumerate().map(pod).chain([Arc::new(foreign)]).collect();
            world.related.insert("cats".to_owned(), all);
            let composed = world.compose(&composition, &spec(replicas)).unwrap();
            let cats: Vec<_> = names(&composed).into_iter().filter(|name| name.starts_with("Pod ")).collect();
            assert_eq!(cats, numbered("Pod", 0..pods), "{ready:?}");
        }
    }

    #[test]
    fn the_service_turns_when_the_other_colour_is_available() {
        let composition = example("bluegreen.yaml");
        let colour = json!({"image": "x", "replicas": 2});
        let spec = |active: &str| parent(json!({"active": active, "blue": colour, "green": colour}));
        let mut world = World::default();
        let first = world.compose(&composition, &spec("green")).unwrap();
        assert_eq!(names(&first), ["Deployment ns/p-blue", "Deployment ns/p-green"]);
        // In the second row and the third, Pods of the template before are available.
        for (updated, replicas, available, held) in
            [(2, 2, 1, true), (0, 2, 2, true), (2, 3, 2, true), (2, 2, 2, false)]
        {
            let status = json!({
                "observedGeneration": 1, "updatedReplicas": updated, "replicas": replicas, "availableReplicas": available,
            });
            world.apply(&first, &status);
            for kept in world.children.values_mut() {
                Arc::make_mut(kept)["metadata"]["generation"] = json!(1);
            }
            let composed = world.compose(&composition, &spec("green")).unwrap();
            let service = &composed.children[2];
            assert_eq!((service.held.is_some(), &service.object["spec"]["selector"]["color"]), (held, &json!("green")));
        }
        let alone = parent(json!({"active": "green", "green": colour}));
        assert_eq!(names(&world.compose(&composition, &alone).unwrap()), ["Deployment ns/p-green", "Service ns/p"]);
    }

    #[test]
    fn another_list_of_tasks_is_another_run() {
        let composition = example("indexedjob.yaml");
        let of = |tasks: &[&str]| {
            let mut world = World::default();
            let parent = parent(json!({"image": "x", "tasks": tasks}));
            let first = world.compose(&composition, &parent).unwrap();
            world.apply(&first, &json!({}));
            let second = world.compose(&composition, &parent).unwrap();
            (second.children[0].object["data"].clone(), second.children[1].clone())
        };
        let (tasks, job) = of(&["a", "b"]);
        assert_eq!((tasks, &job.object["spec"]["completions"]), (json!({"0": "a", "1": "b"}), &json!(2)));
        assert_eq!(job.care.update, Update::Recreate);
        assert_ne!(of(&["a", "c"]).1.object, job.object);
    }

    #[test]
    fn a_team_connects_when_its_database_is_ready_and_nothing_of_it_goes_with_the_team() {
        let composition = example("teamdatabase.yaml");
        let without = parent(json!({"storage": "10Gi"}));
        let mut world = World::default();
        for _ in 0..2 {
            let composed = world.compose(&composition, &without).unwrap();
            world.apply(&composed, &json!({"readyInstances": 1}));
        }
        let composed = world.compose(&composition, &without).unwrap();
        assert_eq!(names(&composed), ["Secret ns/p-owner", "PostgresCluster ns/p", "ConfigMap ns/p-connection"]);
        let [secret, cluster, connection] = &composed.children[..] else { panic!() };
        assert!(secret.generate.is_some() && secret.care == cluster.care && cluster.care.deletion == Deletion::Keep);
        assert!(connection.held.as_deref().is_some_and(|why| why.contains("until cluster is ready")), "{connection:?}");
        assert_eq!(connection.object["data"]["backups"], "none");
        world.apply(&composed, &json!({"readyInstances": 2}));
        let ready = world.compose(&composition, &without).unwrap();
        assert_eq!((&ready.children[2].held, &ready.status["ready"]), (&None, &json!(2)));
        // What may be absent is waited for when it is asked for.
        let with =
            world.compose(&composition, &parent(json!({"storage": "10Gi", "backups": {"schedule": "daily"}}))).unwrap();
        assert_eq!(
            (with.children[2].key.of.kind.as_str(), with.waiting[0].id.as_str()),
            ("PostgresBackup", "connection")
        );
    }
}
