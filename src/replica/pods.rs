//! A Pod as it is shown to people: where it answers, and what Kubernetes says is wrong with it. Pure.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

use super::proof;
use crate::ops::status;

/// Where a replica listens unless its Pod says otherwise.
pub const PORT: u16 = 8080;

/// The label with the hash of the template that a Pod was made from.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// What people see of a Pod.
pub fn shown(pod: &Pod) -> status::Pod {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
    let ip = ip.and_then(|ip| ip.parse().ok());
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    status::Pod {
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone(),
        generation: label.cloned().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        condition: condition(pod),
        address: ip.map(|ip| SocketAddr::new(ip, port(pod).unwrap_or(PORT))),
    }
}

/// The port of its container that is called `http`, or the first one.
pub fn port(pod: &Pod) -> Option<u16> {
    let containers = &pod.spec.as_ref()?.containers;
    let ports: Vec<_> = containers.iter().flat_map(|container| container.ports.iter().flatten()).collect();
    let named = ports.iter().find(|port| port.name.as_deref() == Some("http")).or(ports.first());
    named.and_then(|port| u16::try_from(port.container_port).ok())
}

/// What Kubernetes says is wrong with a Pod, as `kubectl get pods` has it.
fn condition(pod: &Pod) -> Option<(String, Option<String>)> {
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(("Terminating".to_owned(), None));
    }
    let status = pod.status.as_ref()?;
    for container in status.container_statuses.iter().flatten() {
        let state = container.state.as_ref();
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let word = waiting.reason.clone().unwrap_or_else(|| "Waiting".to_owned());
            return Some((word, ended(container).or_else(|| waiting.message.clone())));
        }
        if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
            return Some((terminated.reason.clone().unwrap_or_else(|| "Terminated".to_owned()), ended(container)));
        }
    }
    let phase = status.phase.as_deref()?;
    let unscheduled = status.conditions.iter().flatten().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    (phase != "Running").then(|| (phase.to_owned(), unscheduled.and_then(|it| it.message.clone())))
}

/// How much of a container's last words is shown, in bytes.
const SHOWN: usize = 400;

/// The last words of a container, in one line: all of them are in the Pod's status.
fn ended(container: &ContainerStatus) -> Option<String> {
    let of = |state: Option<&ContainerState>| {
        let ended = state?.terminated.as_ref()?;
        let mut words = proof::words(ended.message.as_deref().unwrap_or_default());
        let Some(first) = words.next() else { return Some(format!("exit code {}", ended.exit_code)) };
        let shown = &first[..first.floor_char_boundary(SHOWN)];
        let is_all = shown == first && words.next().is_none();
        Some(if is_all { shown.to_owned() } else { format!("{shown} …") })
    };
    of(container.last_state.as_ref()).or_else(|| of(container.state.as_ref()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(ports: Value) -> Pod {
        let pod = json!({
            "metadata": {"name": "a", "uid": "u", "labels": {"pod-template-hash": "7c9f"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": ports}]},
            "status": {"phase": "Running", "podIP": "10.0.0.7"},
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_pod_that_does_not_start_shows_the_last_words_of_its_process() {
        let condition = |message: &str| {
            let ended = json!({"terminated": {"exitCode": 2, "message": message}});
            let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
            let mut pod = pod(json!([]));
            let status = json!({"containerStatuses": [{
                "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 1, "state": waiting, "lastState": ended,
            }]});
            pod.status = Some(serde_json::from_value(status).unwrap());
            condition(&pod).unwrap().1.unwrap()
        };
        assert_eq!(condition("\nleasehold holder p_1\n\nno such field\n"), "no such field");
        assert_eq!(
            condition("leasehold.yaml:3:20: no such field\n  3 | x\n    | ^\n"),
            "leasehold.yaml:3:20: no such field …"
        );
        assert_eq!(condition(&"é".repeat(2000)).chars().count(), 200 + 2);
        assert_eq!(condition("\nleasehold holder p_1\n"), "exit code 2");
        assert_eq!(condition(""), "exit code 2");
    }

    #[test]
    fn a_replica_listens_where_its_pod_says() {
        let port = |ports| port(&pod(ports));
        assert_eq!(port(json!([{"containerPort": 9443}, {"name": "http", "containerPort": 8081}])), Some(8081));
        assert_eq!(port(json!([{"containerPort": 9000}])), Some(9000));
        assert_eq!(port(json!([])), None);
        let shown = shown(&pod(json!([])));
        assert_eq!(shown.address, Some(SocketAddr::from(([10, 0, 0, 7], PORT))));
        assert_eq!((shown.generation.as_str(), shown.node.as_deref(), shown.condition), ("7c9f", Some("n"), None));
    }
}
