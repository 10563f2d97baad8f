//! `leasehold status` and `explain`, as an operator on call runs them: by the account of one who may look and change nothing.

use std::{
    net::{IpAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context, Result};
use futures::{StreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use leasehold_cluster::{Signal, eventually};
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};

use crate::{
    lone::{Lone, Plan, Program, observer},
    stage::{PATIENCE, Stage, ensure, lease_of, name_of, play, plural, pod_of, tell},
};

/// One who looks: a ServiceAccount with the Role of `deploy/`.
struct Viewer {
    namespace: String,
    kubeconfig: PathBuf,
}

impl Stage {
    async fn events(&self) -> Result<Vec<Event>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        Ok(events.list(&ListParams::default()).await?.items)
    }

    async fn viewer(&self) -> Result<Viewer> {
        let namespace = &self.namespace;
        let role = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/viewer.yaml"))?;
        let role = role.replace("name: leasehold-viewer", &format!("name: leasehold-viewer\n  namespace: {namespace}"));
        self.cluster.apply(&role).await?;
        let account = format!(
            "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: viewer, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: viewer, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: leasehold-viewer}}
subjects: [{{kind: ServiceAccount, name: viewer, namespace: {namespace}}}]
"
        );
        self.cluster.apply(&account).await?;
        let kubeconfig = self.cluster.service_account_kubeconfig(namespace, "viewer").await?;
        Ok(Viewer { namespace: namespace.clone(), kubeconfig })
    }
}

/// An event with this reason on the Lease of a kind, which names this holder.
fn is_about(event: &Event, kind: &str, reason: &str, holder: &str) -> bool {
    let regarding = event.regarding.as_ref();
    regarding
        .is_some_and(|it| it.kind.as_deref() == Some("Lease") && it.name == Some(lease_of(kind)) && it.uid.is_some())
        && event.reason.as_deref() == Some(reason)
        && event.note.as_ref().is_some_and(|note| note.contains(holder))
}

impl Viewer {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
        command.args(arguments).args(["--namespace", &self.namespace]).env_remove("KUBECONFIG").env_remove("RUST_LOG");
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.command(arguments).output().await?)
    }

    /// What it prints; it has to succeed.
    async fn says(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments).await?;
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure(output.status.success(), || format!("{arguments:?}: {said}{complained}"))?;
        Ok(said.into_owned())
    }

    async fn status(&self, via: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.says(&["status", "-o", "json", "--via", via]).await?)?)
    }

    async fn explain(&self, kind: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.says(&["explain", kind, "-o", "json", "--via", DIRECT]).await?)?)
    }

    /// The exit code of a check, and what it says.
    async fn check(&self, more: &[&str]) -> Result<(i32, String)> {
        let output = self.run(&[&["status", "--check"][..], more].concat()).await?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().context("an exit code")?, String::from_utf8_lossy(&said).into_owned()))
    }
}

/// The Pods of this machine have loopback addresses, to which the API server's proxy does not connect.
const DIRECT: &str = "pod-address";

fn kind<'v>(status: &'v Value, kind: &str) -> &'v Value {
    let all = status["kinds"].as_array().into_iter().flatten();
    all.into_iter().find(|it| it["kind"] == name_of(kind)).unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_who_leads_what_and_finds_the_cause_of_what_is_wrong() -> Result<()> {
    let mut stage = Stage::set("status", 3).await?;
    stage.stubborn = false;
    play(stage, |stage| async move {
        let viewer = stage.viewer().await?;
        let (code, said) = viewer.check(&["--via", DIRECT]).await?;
        ensure(code == 2 && said.contains("has no Leases of an installation"), || format!("{code}: {said}"))?;
        stage.let_events_be_written().await?;
        stage.replicas(3).await?;
        stage.all_led().await?;
        all_is_well(stage, &viewer).await?;
        changes_are_watched(stage, &viewer).await?;
        kubectl_finds_it(stage, &viewer).await?;
        let holder = stage.holders().await?[&lease_of(&stage.kinds[0])].clone();
        a_killed_replica_is_named(stage, &viewer, &holder).await?;
        a_silent_replica_is_named(stage, &viewer).await?;
        a_right_that_was_taken_away_is_named(stage, &viewer).await?;
        what_may_not_be_read_is_named(stage, &viewer).await
    })
    .await;
    Ok(())
}

async fn all_is_well(stage: &Stage, viewer: &Viewer) -> Result<()> {
    let led = |status: &Value| status["allLed"] == true && status["replicas"].as_array().map(Vec::len) == Some(3);
    let status = eventually("the status shows it", PATIENCE, || viewer.status(DIRECT), led).await?;
    let holders = stage.holders().await?;
    for kind in &stage.kinds {
        let shown = self::kind(&status, kind);
        ensure(shown["state"] == "Leading" && shown["holder"] == holders[&lease_of(kind)].as_str(), || {
            status.to_string()
        })?;
    }
    let ready = |replica: &Value| replica["state"] == "Ready" && replica["memoryBytes"].as_u64() > Some(1 << 20);
    ensure(status["replicas"].as_array().is_some_and(|all| all.iter().all(ready)), || status.to_string())?;
    ensure(status["notReached"] == json!([]), || status.to_string())?;
    let table = viewer.says(&["status", "--via", DIRECT]).await?;
    tell(&table);
    ensure(table.contains("3 of 3 kinds led, 3 of 3 replicas ready"), || table.clone())?;
    for output in ["wide", "yaml"] {
        viewer.says(&["status", "--via", DIRECT, "-o", output]).await?;
    }
    let (code, said) = viewer.check(&["--via", DIRECT]).await?;
    ensure(code == 0, || said)?;
    // By the Leases alone: each of them is seen to be renewed.
    let (code, said) = viewer.check(&["--via", "nothing"]).await?;
    ensure(code == 0 && said.contains("Renewed"), || said)?;
    let told = viewer.says(&["explain", &stage.kinds[0], "--via", DIRECT]).await?;
    tell(&told);
    for part in ["Why it is there", "It stays where it is", "CAN HAVE IT", "The last takeovers"] {
        ensure(told.contains(part), || told.clone())?;
    }
    // One who may look changes nothing.
    let moved = viewer.run(&["hand-over", &stage.kinds[0]]).await?;
    let said = String::from_utf8_lossy(&moved.stderr).into_owned();
    ensure(!moved.status.success() && said.contains("forbidden"), || said)
}

/// Without a terminal each kind is a line, and later each change; a signal ends it well.
async fn changes_are_watched(stage: &Stage, viewer: &Viewer) -> Result<()> {
    let mut watching = viewer.command(&["status", "--watch", "--interval", "1", "--via", DIRECT]);
    let mut watching = watching.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = BufReader::new(watching.stdout.take().context("its output")?).lines();
    let mut next = async || -> Result<String> {
        let line = timeout(PATIENCE, lines.next_line()).await.context("no line comes")??;
        line.context("its output ends")
    };
    for kind in &stage.kinds {
        let line = next().await?;
        ensure(line.starts_with(&format!("{} Leading ", name_of(kind))), || line)?;
    }
    let (moved, others) = stage.kinds.split_last().context("kinds")?;
    let to = stage.holders().await?[&lease_of(&others[0])].clone();
    let pod = pod_of(&to);
    let wanted = format!("leasehold.dev/hand-over-to={pod}");
    stage.cluster.kubectl(&["annotate", "lease", &lease_of(moved), "-n", &stage.namespace, &wanted]).await?;
    let arrived = format!("{} Leading {pod}; taken over ", name_of(moved));
    let line = loop {
        let line = next().await?;
        if line.starts_with(&arrived) {
            break line;
        }
    };
    ensure(line.contains("HandedOver"), || line)?;
    let back = format!("{}-", "leasehold.dev/hand-over-to");
    stage.cluster.kubectl(&["annotate", "lease", &lease_of(moved), "-n", &stage.namespace, &back]).await?;
    let id = watching.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("it runs")?;
    kill_process(id, Signal::INT)?;
    let ended = timeout(PATIENCE, watching.wait()).await.context("it goes on")??;
    ensure(ended.success(), || format!("{ended}"))?;
    let (code, said) = viewer.check(&["--via", DIRECT]).await?;
    ensure(code == 0, || said)
}

/// The real kubectl runs a plugin by its name.
async fn kubectl_finds_it(stage: &Stage, viewer: &Viewer) -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_leasehold"), folder.path().join("kubectl-leasehold"))?;
    let kubectl = |arguments: &[&str]| {
        let mut command = Command::new(&stage.cluster.binaries().kubectl);
        command
            .arg("leasehold")
            .args(arguments)
            .env("PATH", folder.path())
            .env("KUBECONFIG", &viewer.kubeconfig)
            .output()
    };
    let help = kubectl(&["status", "--help"]).await?;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    ensure(help.contains("Usage: kubectl leasehold status"), || help)?;
    let shown = kubectl(&["status", "-n", &stage.namespace, "--via", DIRECT]).await?;
    let shown = String::from_utf8_lossy(&[shown.stdout, shown.stderr].concat()).into_owned();
    ensure(shown.contains("3 of 3 kinds led"), || shown)
}

async fn a_killed_replica_is_named(stage: &Stage, viewer: &Viewer, holder: &str) -> Result<()> {
    let killed = &stage.kinds[0];
    stage.kubelet.signal(&stage.namespace, pod_of(holder), Signal::KILL)?;
    let taken = |told: &Value| {
        let last = told["takeovers"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        last["from"] == holder && ["Restarted", "ProvenDead"].iter().any(|reason| last["reason"] == *reason)
    };
    let told = eventually("the death is named", PATIENCE, || viewer.explain(killed), taken).await?;
    tell(&format!("killed: {}", told["takeovers"]));
    let said = |all: &Vec<Event>| all.iter().any(|event| is_about(event, killed, "Acquired", holder));
    eventually("an event on the Lease tells of it", PATIENCE, || stage.events(), said).await?;
    eventually("all are led again", PATIENCE, || viewer.check(&["--via", DIRECT]), |(code, _)| *code == 0).await?;
    Ok(())
}

/// A process that is stopped answers nothing, and its Lease expires.
async fn a_silent_replica_is_named(stage: &Stage, viewer: &Viewer) -> Result<()> {
    let quiet = &stage.kinds[1];
    let holder = stage.holders().await?[&lease_of(quiet)].clone();
    let pod = pod_of(&holder).to_owned();
    stage.kubelet.signal(&stage.namespace, &pod, Signal::STOP)?;
    let named = |status: &Value| {
        let reached = |replica: &Value| replica["pod"] != pod.as_str() || replica["reached"] == false;
        let last = &kind(status, quiet)["lastTakeover"];
        status["replicas"].as_array().is_some_and(|all| all.iter().all(reached))
            && status["notReached"].to_string().contains(&pod)
            && last["from"] == holder.as_str()
            && last["reason"] == "Expired"
            && last["withoutLeaderSeconds"].as_f64() > Some(4.0)
    };
    let status = eventually("the silence is named", PATIENCE, || viewer.status(DIRECT), named).await?;
    tell(&format!("silent: {} {}", kind(&status, quiet)["lastTakeover"], status["notReached"]));
    tell(&viewer.says(&["status", "--via", DIRECT]).await?);
    let (code, said) = viewer.check(&["--via", DIRECT, "--timeout", "30"]).await?;
    ensure(code == 0, || said)?;
    stage.kubelet.signal(&stage.namespace, &pod, Signal::CONT)?;
    let back = |status: &Value| status["notReached"] == json!([]) && status["allLed"] == true;
    eventually("it is back", PATIENCE, || viewer.status(DIRECT), back).await?;
    Ok(())
}

async fn a_right_that_was_taken_away_is_named(stage: &Stage, viewer: &Viewer) -> Result<()> {
    let (denied, others) = stage.kinds.split_first().context("kinds")?;
    let granted: Vec<_> = others.iter().map(|kind| plural(kind)).collect();
    let role = |resources: &[String]| {
        let resources = resources.join(", ");
        format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: {}}}, rules: [{{apiGroups: [observer.leasehold.dev], resources: [{resources}], verbs: [get, list, watch, patch]}}]}}",
            stage.namespace
        )
    };
    stage.cluster.apply(&role(&granted)).await?;
    let blocked = |status: &Value| kind(status, denied)["state"] == "Blocked";
    let status = eventually("the kind is blocked", PATIENCE, || viewer.status(DIRECT), blocked).await?;
    ensure(kind(&status, denied)["reasons"].to_string().contains(&plural(denied)), || status.to_string())?;
    let (code, said) = viewer.check(&["--via", DIRECT, "--timeout", "0"]).await?;
    ensure(code == 1 && said.contains("no replica can lead it"), || format!("{code}: {said}"))?;
    let told = viewer.says(&["explain", denied, "--via", DIRECT]).await?;
    tell(&told);
    ensure(told.contains("Blocked: ") && told.contains("What stands in the way"), || told.clone())?;
    let all: Vec<_> = stage.kinds.iter().map(|kind| plural(kind)).collect();
    stage.cluster.apply(&role(&all)).await?;
    eventually("it is led again", PATIENCE, || viewer.check(&["--via", DIRECT]), |(code, _)| *code == 0).await?;
    Ok(())
}

/// Without the rights the rest is shown; without any, it could not be found out.
async fn what_may_not_be_read_is_named(stage: &Stage, viewer: &Viewer) -> Result<()> {
    let namespace = &stage.namespace;
    let role = |rules: &str| {
        format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {{name: leasehold-viewer, namespace: {namespace}}}, rules: [{rules}]}}"
        )
    };
    stage
        .cluster
        .apply(&role("{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, watch]}"))
        .await?;
    let fewer = |status: &Value| {
        let said = status["notReached"].to_string();
        let held = stage.kinds.iter().all(|it| kind(status, it)["state"] == "Held");
        held && said.contains("the Pods of namespace")
            && said.contains("pods/proxy")
            && said.contains("leasehold-viewer")
    };
    eventually("what is missing is named", PATIENCE, || viewer.status("api-server"), fewer).await?;
    let (code, said) = viewer.check(&["--via", "api-server"]).await?;
    ensure(code == 0, || format!("the Leases tell: {said}"))?;
    stage.cluster.apply(&role("")).await?;
    let denied = |found: &(i32, String)| found.0 == 2 && found.1.contains("failed to list the Leases");
    eventually("nothing can be found out", PATIENCE, || viewer.check(&[]), denied).await?;
    Ok(())
}

/// An address of this machine that is no loopback, if it has one; no packet is sent.
fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// The replica is a process here; its Pod is one that no kubelet has, with an address that the API server's proxy connects to.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_asked_through_the_api_server_by_one_who_may_look() -> Result<()> {
    let Some(address) = address() else {
        tell("left out: this machine has no address but loopback, to which the API server's proxy does not connect");
        return Ok(());
    };
    // On a cluster of its own: the way from a shared one into the network of Pods belongs to the test that has started it.
    play(Stage::set_apart("proxied", 1).await?, |stage| async move {
        let namespace = &stage.namespace;
        let folder = tempfile::tempdir()?;
        let config = observer(stage, folder.path(), "replica-0", "", "")?;
        let replica = Lone::start(stage, Plan::new(Program::Observer, "replica-0", &config)).await?;
        stage.all_led().await?;
        let listener = TcpListener::bind((address, 0)).await?;
        let port = listener.local_addr()?.port();
        let to = replica.address.clone();
        // The API server keeps connections open, and makes more.
        let forward = async {
            let mut open = FuturesUnordered::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (mut from, _) = accepted?;
                        let to = &to;
                        open.push(async move {
                            let mut to = TcpStream::connect(to).await?;
                            copy_bidirectional(&mut from, &mut to).await
                        });
                    }
                    Some(_ended) = open.next() => {}
                }
            }
        };
        let looks = async {
            let pod = format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: replica-0, namespace: {namespace}}}, spec: {{nodeName: none, containers: [{{name: it, image: none, ports: [{{name: http, containerPort: {port}}}]}}]}}}}"
            );
            stage.cluster.apply(&pod).await?;
            let pods: Api<Pod> = Api::namespaced(stage.client.clone(), namespace);
            let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
            pods.patch_status("replica-0", &PatchParams::default(), &Patch::Merge(status)).await?;
            ensure(pods.list(&ListParams::default()).await?.items.len() == 1, || "one Pod".to_owned())?;
            let viewer = stage.viewer().await?;
            let well = |status: &Value| status["allLed"] == true && status["replicas"][0]["state"] == "Ready";
            let status = eventually("the replica is reached", PATIENCE, || viewer.status("api-server"), well).await?;
            ensure(kind(&status, &stage.kinds[0])["state"] == "Leading", || status.to_string())?;
            let (code, said) = viewer.check(&[]).await?;
            ensure(code == 0, || said)?;
            let may = |verb: &str, what: &str| {
                let (what, part) = what.split_once('/').unwrap_or((what, ""));
                let part = format!("--subresource={part}");
                let asked = ["auth", "can-i", verb, what, &part, "-n", namespace.as_str()].map(str::to_owned);
                let account = format!("system:serviceaccount:{namespace}:viewer");
                async move {
                    let asked: Vec<&str> = asked.iter().map(String::as_str).chain(["--as", &account]).collect();
                    anyhow::Ok(stage.cluster.kubectl(&asked).await.is_ok_and(|said| said.trim() == "yes"))
                }
            };
            for (verb, what, expected) in [
                ("get", "pods/proxy", true),
                ("list", "leases", true),
                ("create", "pods/proxy", false),
                ("patch", "leases", false),
                ("get", "secrets", false),
                ("get", "pods/log", false),
                ("create", "pods/exec", false),
            ] {
                ensure(may(verb, what).await? == expected, || format!("{verb} {what}"))?;
            }
            stage.cluster.kubectl(&["delete", "pod", "replica-0", "-n", namespace, "--force", "--grace-period=0"]).await?;
            anyhow::Ok(())
        };
        tokio::select! {
            ended = forward => { let ended: Result<()> = ended; ended }
            looked = looks => looked,
        }
    })
    .await;
    Ok(())
}
