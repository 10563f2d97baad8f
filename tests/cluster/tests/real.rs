//! The cluster itself, on the real thing. One cluster for all steps; they share it one after another.
#![expect(clippy::unwrap_used, reason = "a test may unwrap")]

use anyhow::{Context, Result};
use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{ContainerStatus, Pod},
};
use kube::{Api, Client, Config, api::ListParams, config::KubeConfigOptions};
use leasehold_cluster::{Cluster, Fault, Kubelet, KubeletOptions, Rule, Signal, eventually};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);

const DEPLOYMENT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: real}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: ticker, namespace: real}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: ticker, namespace: real}
data: {greeting.txt: "hello from a file"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ticker, namespace: real}
spec:
  replicas: 3
  selector: {matchLabels: {app: ticker}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: ticker}}
    spec:
      serviceAccountName: ticker
      terminationGracePeriodSeconds: 10
      containers:
      - name: ticker
        image: shell:dev
        args:
        - -c
        - |
          trap 'echo stopping; exit 0' TERM
          echo "$POD_NAME in $POD_NAMESPACE listens on $LISTEN and reads $(cat $FILE)"
          while :; do sleep 0.1; done
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: LISTEN, value: "0.0.0.0:8080"}
        - {name: FILE, value: /etc/ticker/greeting.txt}
        volumeMounts: [{name: files, mountPath: /etc/ticker}]
      volumes: [{name: files, configMap: {name: ticker}}]
"#;

struct Stage {
    cluster: Cluster,
    kubelet: Kubelet,
    pods: Api<Pod>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_on_processes() -> Result<()> {
    let started = Instant::now();
    let say = |text: &str| println!("{:>6.1?}  {text}", started.elapsed());

    let cluster = Cluster::start().await?;
    say("control plane");
    let kubelet = cluster
        .start_kubelet(KubeletOptions {
            nodes: 3,
            images: [("shell".to_owned(), PathBuf::from("/bin/sh"))].into(),
            proxy_per_pod: true,
            restart_backoff: Duration::from_millis(200),
            ..KubeletOptions::default()
        })
        .await?;
    let pods = Api::namespaced(cluster.client()?, "real");
    let stage = Stage { cluster, kubelet, pods };
    stage.cluster.apply(DEPLOYMENT).await?;
    stage.cluster.kubectl(&["rollout", "status", "-n", "real", "deployment/ticker", "--timeout=30s"]).await?;
    say("rolled out");

    rolls_over(&stage).await?;
    say("restarted rollout");
    shows_logs(&stage).await?;
    say("logs");
    restarts_a_killed_process(&stage).await?;
    say("killed process restarted");
    tells_the_last_words(&stage).await?;
    say("last words");
    restores_a_deleted_pod(&stage).await?;
    say("deleted pod replaced");
    checks_rights(&stage).await?;
    say("rights");
    runs_a_client_go_elector(&stage).await?;
    say("client-go elector");
    survives_an_api_server_restart(&stage).await?;
    say("API server restarted");
    Ok(())
}

async fn rolls_over(stage: &Stage) -> Result<()> {
    let before = running(&stage.pods).await?;
    stage.cluster.kubectl(&["rollout", "restart", "-n", "real", "deployment/ticker"]).await?;
    stage.cluster.kubectl(&["rollout", "status", "-n", "real", "deployment/ticker", "--timeout=60s"]).await?;
    let (names, _) = eventually(
        "three new pods, and the old processes gone",
        SOON,
        || async {
            let names = running(&stage.pods).await?;
            let old: Vec<_> = before.iter().flat_map(|pod| stage.kubelet.pids("real", pod)).collect();
            anyhow::Ok((names, old))
        },
        |(names, old)| names.len() == 3 && old.is_empty() && names.iter().all(|name| !before.contains(name)),
    )
    .await?;
    let log = stage.kubelet.log("real", &before[0]);
    assert!(log.ends_with("stopping\n"), "an old pod gets SIGTERM: {log:?}");
    // An old pod may be listed still.
    let pod = stage.pods.get(&names[0]).await?;
    let conditions: Vec<_> = pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).collect();
    for wanted in ["PodScheduled", "Initialized", "ContainersReady", "Ready"] {
        assert!(
            conditions.iter().any(|found| found.type_ == wanted && found.status == "True"),
            "{wanted}: {conditions:?}"
        );
    }
    Ok(())
}

async fn shows_logs(stage: &Stage) -> Result<()> {
    let pod = running(&stage.pods).await?.remove(0);
    let log = stage.cluster.kubectl(&["logs", "-n", "real", &pod, "--tail=5"]).await?;
    let address = stage.pods.get(&pod).await?.status.and_then(|status| status.pod_ip).context("no pod address")?;
    assert_eq!(log, format!("{pod} in real listens on {address}:8080 and reads hello from a file\n"));
    Ok(())
}

async fn restarts_a_killed_process(stage: &Stage) -> Result<()> {
    let pod = running(&stage.pods).await?.remove(0);
    let first = stage.kubelet.pids("real", &pod);
    stage.kubelet.signal("real", &pod, Signal::KILL)?;
    let status = restarted(stage, &pod, 1).await?;
    let last = status.last_state.and_then(|state| state.terminated).context("no last state")?;
    assert_eq!((last.exit_code, last.signal, last.reason.as_deref()), (137, Some(9), Some("Error")));
    assert_ne!(stage.kubelet.pids("real", &pod), first);

    stage.kubelet.signal("real", &pod, Signal::KILL)?;
    restarted(stage, &pod, 2).await?;
    let previous = stage.cluster.kubectl(&["logs", "-n", "real", &pod, "--previous"]).await?;
    assert_eq!(previous.lines().count(), 1, "one run's log: {previous:?}");
    Ok(())
}

// `$$` is an escaped `$` in arguments.
const LAST_WORDS: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: speaker, namespace: words}
---
apiVersion: v1
kind: Pod
metadata: {name: again, namespace: words}
spec:
  serviceAccountName: speaker
  containers:
  - name: default
    image: shell:dev
    args: [-c, 'echo "$$$$ $0" >> "$TERMINATION_LOG"; while :; do sleep 0.1; done', "--log=/dev/termination-log"]
  - name: own-path
    image: shell:dev
    terminationMessagePath: /tmp/words
    args: [-c, 'echo "$$$$" >> /tmp/words; while :; do sleep 0.1; done']
  - name: own-variable
    image: shell:dev
    env: [{name: TERMINATION_LOG, value: mine}]
    args: [-c, 'echo "$$$$ $TERMINATION_LOG" >> /dev/termination-log; while :; do sleep 0.1; done']
---
apiVersion: v1
kind: Pod
metadata: {name: once, namespace: words}
spec:
  serviceAccountName: speaker
  restartPolicy: Never
  containers:
  - {name: once, image: "shell:dev", args: [-c, 'echo $$$$ >> /dev/termination-log; while :; do sleep 0.1; done']}
"#;

/// What a run wrote to its termination log is in its status after SIGKILL, and in no later run's.
async fn tells_the_last_words(stage: &Stage) -> Result<()> {
    stage.cluster.kubectl(&["create", "namespace", "words"]).await?;
    stage.cluster.apply(LAST_WORDS).await?;
    let pods = Api::<Pod>::namespaced(stage.cluster.client()?, "words");
    let look = |pod: &'static str| {
        let pods = pods.clone();
        async move {
            let statuses = pods.get(pod).await?.status.and_then(|status| status.container_statuses);
            statuses.context("no container statuses")
        }
    };
    // A process that is killed before it has spoken says nothing.
    let spoken = |pod: &'static str, run: usize, containers: usize| async move {
        let folder = || stage.kubelet.log_path("words", pod).map(|path| path.with_file_name("termination-logs"));
        let count = || async {
            let mut count = 0;
            for file in std::fs::read_dir(folder().context("not started")?)? {
                let file = file?;
                let of_run = file.file_name().to_string_lossy().ends_with(&format!(".{run}"));
                count += usize::from(of_run && file.metadata()?.len() > 0);
            }
            anyhow::Ok(count)
        };
        eventually("all have spoken", SOON, count, |count| *count == containers).await?;
        anyhow::Ok((stage.kubelet.pids("words", pod), folder().context("no folder")?))
    };

    for run in 0..2 {
        let (pids, folder) = spoken("again", run, 3).await?;
        stage.kubelet.signal("words", "again", Signal::KILL)?;
        let restarted = |statuses: &Vec<ContainerStatus>| {
            statuses.iter().all(|status| {
                usize::try_from(status.restart_count) == Ok(run + 1)
                    && status.state.as_ref().is_some_and(|state| state.running.is_some())
            })
        };
        let statuses = eventually("all run again", SOON, || look("again"), restarted).await?;
        let [default, own_path, own_variable] = pids[..] else { panic!("three processes: {pids:?}") };
        let stand_in = folder.join(format!("default.{run}"));
        for (name, words) in [
            ("default", format!("{default} --log={}\n", stand_in.display())),
            ("own-path", format!("{own_path}\n")),
            ("own-variable", format!("{own_variable} mine\n")),
        ] {
            let status = statuses.iter().find(|status| status.name == name).context("no status")?;
            let last =
                status.last_state.as_ref().and_then(|state| state.terminated.as_ref()).context("no last state")?;
            assert_eq!((last.signal, last.message.as_ref()), (Some(9), Some(&words)), "{name}, run {run}");
        }
    }

    let (pids, _) = spoken("once", 0, 1).await?;
    stage.kubelet.signal("words", "once", Signal::KILL)?;
    let said = |statuses: &Vec<ContainerStatus>| {
        let ended = statuses[0].state.as_ref().and_then(|state| state.terminated.as_ref());
        ended.and_then(|ended| ended.message.as_deref()) == Some(format!("{}\n", pids[0]).as_str())
    };
    eventually("the end of a pod that does not restart has its words", SOON, || look("once"), said).await?;
    stage.cluster.kubectl(&["delete", "namespace", "words", "--wait=false"]).await?;
    Ok(())
}

async fn restores_a_deleted_pod(stage: &Stage) -> Result<()> {
    let pod = running(&stage.pods).await?.remove(0);
    stage.cluster.kubectl(&["delete", "pod", "-n", "real", &pod]).await?;
    assert!(stage.kubelet.log("real", &pod).ends_with("stopping\n"), "{:?}", stage.kubelet.log("real", &pod));
    assert!(stage.kubelet.pids("real", &pod).is_empty());
    let removal = stage
        .cluster
        .audit()?
        .into_iter()
        .find(|event| event.verb == "delete" && event.user == "process-kubelet" && event.name.as_ref() == Some(&pod))
        .context("the kubelet's deletion is not in the audit log")?;
    assert_eq!((removal.resource.as_str(), removal.code), ("pods", 200));

    let forced = running(&stage.pods).await?.remove(0);
    stage.cluster.kubectl(&["delete", "pod", "-n", "real", &forced, "--grace-period=0", "--force"]).await?;
    eventually(
        "a force-deleted pod's process is killed, and three pods are ready",
        SOON,
        || async { anyhow::Ok((stage.kubelet.pids("real", &forced), ready(stage).await?)) },
        |(pids, ready)| pids.is_empty() && *ready == 3,
    )
    .await?;
    Ok(())
}

async fn checks_rights(stage: &Stage) -> Result<()> {
    let cluster = &stage.cluster;
    let pod = running(&stage.pods).await?.remove(0);
    let folder = stage.kubelet.log_path("real", &pod).context("no log")?.with_file_name("kubeconfig");
    let client = client_from(&folder).await?;
    let error = Api::<Pod>::namespaced(client.clone(), "real").list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(&error, kube::Error::Api(answer) if answer.is_forbidden()), "{error:?}");
    let proxy = stage.kubelet.proxy("real", &pod).context("no proxy")?;
    assert_eq!(proxy.count("GET", "pods"), 1);

    cluster
        .kubectl(&["create", "rolebinding", "-n", "real", "see", "--clusterrole=view", "--serviceaccount=real:ticker"])
        .await?;
    let pods = Api::<Pod>::namespaced(client, "real");
    let count = || async { anyhow::Ok(pods.list(&ListParams::default()).await?.items.len()) };
    eventually("the pod's token may list pods", SOON, count, |count| *count == 3).await?;
    let seen = cluster.audit()?;
    let listed = seen.iter().rfind(|event| event.verb == "list" && event.pod.as_ref() == Some(&pod));
    assert_eq!(listed.context("no list by the pod")?.user, "system:serviceaccount:real:ticker");

    proxy.add(Rule::new(Fault::Status { code: 503, retry_after: None }).resource("pods").times(1));
    pods.list(&ListParams::default()).await.unwrap_err();
    pods.list(&ListParams::default()).await?;

    let other = cluster.service_account_kubeconfig("real", "ticker").await?;
    let pods = Api::<Pod>::namespaced(client_from(&other).await?, "default");
    pods.list(&ListParams::default()).await.unwrap_err();
    Ok(())
}

async fn survives_an_api_server_restart(stage: &Stage) -> Result<()> {
    let before = running(&stage.pods).await?;
    let pids: Vec<_> = before.iter().map(|pod| stage.kubelet.pids("real", pod)).collect();
    stage.cluster.restart_api_server().await?;
    let after: Vec<_> = before.iter().map(|pod| stage.kubelet.pids("real", pod)).collect();
    assert_eq!(pids, after, "processes run on");
    stage.cluster.kubectl(&["scale", "-n", "real", "deployment/ticker", "--replicas=4"]).await?;
    eventually("a fourth pod", SOON, || ready(stage), |ready| *ready == 4).await?;

    stage.cluster.pause_api_server().await?;
    let frozen = tokio::time::timeout(Duration::from_millis(500), running(&stage.pods)).await;
    assert!(frozen.is_err(), "a frozen server answers nothing");
    stage.cluster.resume_api_server().await?;
    assert_eq!(running(&stage.pods).await?.len(), 4);
    Ok(())
}

/// The plain client-go elector takes a Lease on this server and gives it back.
async fn runs_a_client_go_elector(stage: &Stage) -> Result<()> {
    let binaries = stage.cluster.binaries().clone();
    let program = tokio::task::spawn_blocking(move || binaries.client_go_elector()).await??;
    let child = tokio::process::Command::new(program)
        .arg(format!("-kubeconfig={}", stage.cluster.kubeconfig().display()))
        .args(["-namespace=real", "-lease=demo", "-identity=go", "-release-on-cancel"])
        .args(["-lease-duration=3s", "-renew-deadline=2s", "-retry-period=500ms"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let leases = Api::<Lease>::namespaced(stage.cluster.client()?, "real");
    let holder = || async {
        let lease = leases.get("demo").await?;
        anyhow::Ok(lease.spec.and_then(|spec| spec.holder_identity))
    };
    eventually("the Go elector holds the Lease", SOON, holder, |holder| holder.as_deref() == Some("go")).await?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.context("no pid")?, Signal::TERM)?;
    let output = String::from_utf8(child.wait_with_output().await?.stdout)?;
    assert!(output.contains(r#""event":"leading","identity":"go""#), "{output}");
    assert!(output.contains(r#""event":"stopped""#), "{output}");
    let released = |holder: &Option<String>| holder.as_deref().unwrap_or_default().is_empty();
    eventually("the Lease is released", SOON, holder, released).await?;
    Ok(())
}

/// Names of the pods that run and are not being deleted.
async fn running(pods: &Api<Pod>) -> Result<Vec<String>> {
    let list = pods.list(&ListParams::default()).await?;
    Ok(list
        .items
        .into_iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"))
        .filter_map(|pod| pod.metadata.name)
        .collect())
}

async fn ready(stage: &Stage) -> Result<i32> {
    let deployments = Api::<Deployment>::namespaced(stage.pods.clone().into_client(), "real");
    Ok(deployments.get("ticker").await?.status.and_then(|status| status.ready_replicas).unwrap_or_default())
}

async fn restarted(stage: &Stage, pod: &str, times: i32) -> Result<ContainerStatus> {
    let look = || async {
        let status = stage.pods.get(pod).await?.status.and_then(|status| status.container_statuses);
        status.and_then(|mut statuses| statuses.pop()).context("no container status")
    };
    eventually(&format!("{pod} has restarted {times} times and runs"), SOON, look, |status| {
        status.restart_count == times
            && status.ready
            && status.state.as_ref().is_some_and(|state| state.running.is_some())
    })
    .await
}

async fn client_from(kubeconfig: &std::path::Path) -> Result<Client> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
