//! The Pod status that follows from its containers' states. Pure.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

/// The status to publish. `before` is what was published last; its transition times are kept where nothing changed.
pub(crate) fn of(
    pod: &Pod,
    containers: Vec<ContainerStatus>,
    address: &str,
    started: Time,
    before: Option<&PodStatus>,
    now: Timestamp,
    ending: bool,
) -> PodStatus {
    let phase = phase(pod, &containers, ending);
    let over = matches!(phase, "Succeeded" | "Failed");
    let all_ready = !containers.is_empty() && containers.iter().all(|container| container.ready);
    let gated = pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let present = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let gates_open = gated.iter().all(|gate| {
        present.iter().any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
    });
    let unready = containers.iter().filter(|container| !container.ready).map(|container| container.name.as_str());
    let message = format!("containers with unready status: [{}]", unready.collect::<Vec<_>>().join(" "));
    let why = if over { ("PodCompleted", None) } else { ("ContainersNotReady", Some(message)) };
    let gate = if all_ready { ("ReadinessGatesNotReady", None) } else { why.clone() };
    let conditions = [
        ("PodReadyToStartContainers", !over, None),
        ("Initialized", true, None),
        ("ContainersReady", all_ready, Some(why)),
        ("Ready", all_ready && gates_open, Some(gate)),
    ];
    let earlier = before.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let conditions = conditions
        .into_iter()
        .map(|(type_, holds, why)| {
            let status = if holds { "True" } else { "False" };
            let since = earlier
                .iter()
                .find(|condition| condition.type_ == type_ && condition.status == status)
                .and_then(|condition| condition.last_transition_time.clone());
            let (reason, message) =
                why.filter(|_| !holds).map_or((None, None), |(reason, message)| (Some(reason), message));
            PodCondition {
                type_: type_.into(),
                status: status.into(),
                reason: reason.map(Into::into),
                message,
                last_transition_time: Some(since.unwrap_or(Time(now))),
                ..PodCondition::default()
            }
        })
        .collect();
    PodStatus {
        phase: Some(phase.into()),
        conditions: Some(conditions),
        container_statuses: Some(containers),
        host_ip: Some("127.0.0.1".into()),
        host_ips: Some(vec![HostIP { ip: "127.0.0.1".into() }]),
        pod_ip: Some(address.into()),
        pod_ips: Some(vec![PodIP { ip: address.into() }]),
        start_time: Some(started),
        ..PodStatus::default()
    }
}

fn phase(pod: &Pod, containers: &[ContainerStatus], ending: bool) -> &'static str {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
    let exit = |container: &ContainerStatus| {
        container.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|terminated| terminated.exit_code)
    };
    let exits: Vec<_> = containers.iter().map(exit).collect();
    let for_good = |code: &Option<i32>| match (code, policy) {
        (None, _) => false,
        (Some(_), "Never") => true,
        (Some(code), "OnFailure") => ending || *code == 0,
        (Some(_), _) => ending,
    };
    if !exits.is_empty() && exits.iter().all(for_good) {
        return if exits.iter().all(|code| *code == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let began = |container: &ContainerStatus| {
        container.last_state.is_some()
            || container.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    if containers.iter().any(began) { "Running" } else { "Pending" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateRunning, ContainerStateTerminated, PodSpec};

    fn container(state: ContainerState, ready: bool) -> ContainerStatus {
        ContainerStatus { name: "c".into(), state: Some(state), ready, ..ContainerStatus::default() }
    }

    fn running() -> ContainerState {
        ContainerState { running: Some(ContainerStateRunning::default()), ..ContainerState::default() }
    }

    fn ended(exit_code: i32) -> ContainerState {
        let terminated = Some(ContainerStateTerminated { exit_code, ..ContainerStateTerminated::default() });
        ContainerState { terminated, ..ContainerState::default() }
    }

    fn pod(policy: &str) -> Pod {
        let spec = Some(PodSpec { restart_policy: Some(policy.into()), ..PodSpec::default() });
        Pod { spec, ..Pod::default() }
    }

    #[test]
    fn phases() {
        for (policy, states, ending, expected) in [
            ("Always", vec![ContainerState::default()], false, "Pending"),
            ("Always", vec![running()], false, "Running"),
            ("Always", vec![running(), ContainerState::default()], false, "Running"),
            ("Always", vec![ended(1)], false, "Running"),
            ("Always", vec![ended(0)], true, "Succeeded"),
            ("OnFailure", vec![ended(1)], false, "Running"),
            ("OnFailure", vec![ended(0)], false, "Succeeded"),
            ("Never", vec![ended(0), ended(3)], false, "Failed"),
        ] {
            let containers: Vec<_> = states.into_iter().map(|state| container(state, false)).collect();
            assert_eq!(phase(&pod(policy), &containers, ending), expected, "{policy} {containers:?} {ending}");
        }
    }

    #[test]
    fn a_condition_keeps_its_transition_time_until_it_changes() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let status = |before: Option<&PodStatus>, ready, now| {
            of(&pod("Always"), vec![container(running(), ready)], "127.0.0.2", Time(at(0)), before, at(now), false)
        };
        let since = |status: &PodStatus| {
            let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
            (ready.status.clone(), ready.last_transition_time.clone().unwrap().0.as_second())
        };
        let first = status(None, false, 1);
        let second = status(Some(&first), false, 2);
        let third = status(Some(&second), true, 3);
        assert_eq!(since(&first), ("False".into(), 1));
        assert_eq!(since(&second), ("False".into(), 1));
        assert_eq!(since(&third), ("True".into(), 3));
    }
}
