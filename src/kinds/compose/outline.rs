//! What a template says of its children before there is an object: where they lie, and what their Pods have. It is what the API
//! server can hold the account of their kind to. Pure.

use super::composition::{Child, Composition};
use crate::{
    config::tree::{Node, Value},
    reconcile::children::Type,
};

/// Fields of a Pod that give it more than any other Pod of its namespace has.
const POWERS: [&str; 8] =
    ["serviceAccountName", "serviceAccount", "hostNetwork", "hostPID", "hostIPC", "hostPath", "privileged", "add"];
/// Fields that may hold one of those: computed, nothing is known of them.
const HOLDERS: [&str; 5] = ["containers", "initContainers", "volumes", "securityContext", "capabilities"];

/// What is known of the children of a template without an object.
#[derive(Debug, Clone, Default)]
pub(super) struct Outline {
    /// Their name and namespace, as the file says them.
    name: Option<String>,
    namespace: Option<String>,
    /// Whether their Pods may have a power.
    powerful: bool,
}

impl Outline {
    pub(super) fn read(of: &Type, template: &Node) -> Self {
        let text = |field: &str| match &at(template, &["metadata", field])?.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let pods = pod_spec(of).map(|path| at(template, path));
        // Where a part on the way is computed, the template does not say what its Pods have.
        let powerful = pods.is_some_and(|pods| pods.is_none_or(|pods| may_have_powers(pods, true)));
        Self { name: text("name"), namespace: text("namespace"), powerful }
    }
}

impl Outline {
    /// Whether it lies in the namespace that another template makes, as the file says both.
    pub(super) fn is_in(&self, space: &Self) -> bool {
        self.namespace.is_some() && self.namespace == space.name
    }
}

impl Composition {
    /// The types of whose children each stands in a namespace that the composition makes for every object.
    pub fn confined(&self) -> Vec<&Type> {
        let is_space = |child: &&Child| {
            let always = child.include_when.is_empty() && child.for_each.is_none();
            always && child.of.group.is_empty() && child.of.kind == "Namespace"
        };
        let made: Vec<_> =
            self.children.iter().filter(is_space).filter_map(|child| child.outline.name.as_ref()).collect();
        let is_confined = |of: &Type| {
            let mut all = self.children.iter().filter(|child| *child.of == *of);
            all.all(|child| child.outline.namespace.as_ref().is_some_and(|namespace| made.contains(&namespace)))
        };
        let mut types: Vec<&Type> = self.children.iter().map(|child| &*child.of).filter(|of| is_confined(of)).collect();
        types.sort();
        types.dedup();
        types
    }

    /// Whether a template gives its Pods what others of their namespace do not have: an account of their choice, the host's
    /// network, processes or files, or privileges; or leaves that to an expression.
    pub fn makes_powerful_pods(&self) -> bool {
        self.children.iter().any(|child| child.outline.powerful)
    }
}

/// Where the spec of the Pods stands that an object of a type makes.
fn pod_spec(of: &Type) -> Option<&'static [&'static str]> {
    match (of.group.as_str(), of.kind.as_str()) {
        ("", "Pod") => Some(&["spec"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template", "spec"]),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job")
        | ("", "ReplicationController") => Some(&["spec", "template", "spec"]),
        _ => None,
    }
}

fn at<'n>(node: &'n Node, path: &[&str]) -> Option<&'n Node> {
    let Some((first, rest)) = path.split_first() else { return Some(node) };
    let Value::Map(entries) = &node.value else { return None };
    at(entries.iter().find(|(key, _)| key.name == *first).map(|(_, value)| value)?, rest)
}

/// `computed`: what an expression may make of it.
fn may_have_powers(node: &Node, computed: bool) -> bool {
    match &node.value {
        Value::Text(_) => computed,
        Value::List(items) => items.iter().any(|item| may_have_powers(item, computed)),
        Value::Map(entries) => entries.iter().any(|(key, value)| {
            let name = key.name.as_str();
            let is_power = POWERS.contains(&name) && !matches!(value.value, Value::Bool(false));
            is_power || may_have_powers(value, HOLDERS.contains(&name))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composition(children: &str) -> Composition {
        let text = format!("apiVersion: leasehold.dev/v1alpha1\nkind: Composition\nchildren:\n{children}");
        Composition::read("f.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn deployment(pods: &str) -> Composition {
        composition(&format!(
            "- {{id: a, template: {{apiVersion: apps/v1, kind: Deployment, metadata: {{name: x}}, spec: {{template: {pods}}}}}}}\n"
        ))
    }

    #[test]
    fn powers_of_pods_are_those_that_the_file_names_or_leaves_to_an_expression() {
        for pods in [
            "{spec: {containers: [{name: a, image: \"${parent.spec.image}\", env: \"${parent.spec.env}\"}]}}",
            "{spec: {hostNetwork: false, containers: [{name: a, securityContext: {capabilities: {drop: [ALL]}}}]}}",
            "{spec: {automountServiceAccountToken: \"${parent.spec.token}\", volumes: [{name: a, emptyDir: {}}]}}",
        ] {
            assert!(!deployment(pods).makes_powerful_pods(), "{pods}");
        }
        for pods in [
            "{spec: {serviceAccountName: robot, containers: []}}",
            "{spec: {hostNetwork: true, containers: []}}",
            "{spec: {hostPID: \"${parent.spec.pid}\", containers: []}}",
            "{spec: {volumes: [{name: a, hostPath: {path: /}}]}}",
            "{spec: {volumes: [\"${parent.spec.volume}\"]}}",
            "{spec: {containers: [{name: a, securityContext: {privileged: true}}]}}",
            "{spec: {initContainers: [{name: a, securityContext: {capabilities: {add: [SYS_ADMIN]}}}]}}",
            "{spec: {containers: \"${parent.spec.containers}\"}}",
            "{spec: \"${parent.spec.pods}\"}",
            "\"${parent.spec.template}\"",
        ] {
            assert!(deployment(pods).makes_powerful_pods(), "{pods}");
        }
        assert!(
            !composition("- {id: a, template: {apiVersion: v1, kind: ConfigMap, metadata: {name: x}}}\n")
                .makes_powerful_pods()
        );
    }

    #[test]
    fn what_stands_in_a_namespace_of_the_composition_is_confined_to_such() {
        let space = "- {id: space, template: {apiVersion: v1, kind: Namespace, metadata: {name: \"${parent.metadata.name}\"}}}\n";
        let child = |id: &str, kind: &str, namespace: &str| {
            format!(
                "- {{id: {id}, template: {{apiVersion: v1, kind: {kind}, metadata: {{name: {id}, namespace: {namespace}}}}}}}\n"
            )
        };
        let own = "\"${parent.metadata.name}\"";
        let of = |children: &[String]| {
            let composition = composition(&children.concat());
            composition.confined().into_iter().map(|of| of.kind.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of(&[space.to_owned(), child("a", "Secret", own), child("b", "Secret", own)]), ["Secret"]);
        assert_eq!(of(&[child("a", "Secret", own)]), [""; 0], "it makes no namespace");
        assert_eq!(of(&[space.to_owned(), child("a", "Secret", own), child("b", "Secret", "shared")]), [""; 0]);
        let elsewhere = child("b", "ConfigMap", "\"${parent.spec.where}\"");
        assert_eq!(of(&[space.to_owned(), child("a", "Secret", own), elsewhere]), ["Secret"]);
    }
}
