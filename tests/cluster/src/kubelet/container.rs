//! One container: its process, its restarts, and the status that goes with them.

use super::{
    Host,
    environment::{command, expand, field, localise, quantity},
    pod::{Board, Identity},
    probe::{Finding, probe},
    record::Record,
    volumes::{self, SERVICE_ACCOUNT},
};
use crate::{
    children::{MARK, exit_code, pid},
    control_plane::{kubeconfig, write_private},
};
use anyhow::{Context, Result, bail};
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, EnvVar, Pod,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{process::Child, sync::watch, time::Instant};

/// A container that ran this long starts over with its back-off, as the kubelet has it.
const BACKOFF_RESET: Duration = Duration::from_secs(600);
/// The longest back-off, in units of the shortest: ten seconds grow to five minutes.
const BACKOFF_LIMIT: u32 = 30;
/// Where a container writes its last words unless it says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// How much of them the status takes.
const MESSAGE_LIMIT: u64 = 4096;

/// One container of a running pod.
pub(crate) struct Task {
    pub(crate) host: Arc<Host>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) identity: Identity,
    pub(crate) container: Container,
    pub(crate) index: usize,
    pub(crate) root: PathBuf,
    pub(crate) address: String,
    /// The API server as this pod reaches it.
    pub(crate) server: String,
    pub(crate) board: Arc<Board>,
    pub(crate) record: Arc<Record>,
    /// When set, the process is to end, and is killed at that instant.
    pub(crate) stop: watch::Receiver<Option<Instant>>,
}

/// How one run ended.
struct Run {
    status: ExitStatus,
    started: Timestamp,
    length: Duration,
}

impl Task {
    /// Runs the container until it has ended for good.
    pub(crate) async fn run(mut self) {
        let mut backoff = Duration::ZERO;
        loop {
            let Some(child) = self.start().await else { return };
            let run = self.watch(child).await;
            let (code, signal) = exit_code(run.status);
            let finished = Timestamp::now();
            let terminated = ContainerStateTerminated {
                container_id: self.board.read(self.index, |status| status.container_id.clone()),
                exit_code: code,
                signal,
                reason: Some(if code == 0 { "Completed" } else { "Error" }.into()),
                message: message(&self.termination_log()),
                started_at: Some(Time(run.started)),
                finished_at: Some(Time(finished)),
            };
            let again = self.stop.borrow().is_none() && self.restarts(code);
            self.board.write(self.index, |status| {
                status.state =
                    Some(ContainerState { terminated: Some(terminated.clone()), ..ContainerState::default() });
                status.ready = false;
                status.started = Some(false);
            });
            if !again {
                return;
            }
            if run.length >= BACKOFF_RESET {
                backoff = Duration::ZERO;
            }
            let last = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
            if !backoff.is_zero() {
                let message = format!(
                    "back-off {backoff:?} restarting failed container={} pod={}_{}({})",
                    self.container.name, self.identity.name, self.identity.namespace, self.identity.uid
                );
                self.host.event(&self.pod, "Warning", "BackOff", &message);
                self.board.write(self.index, |status| {
                    status.state = Some(waiting("CrashLoopBackOff", &message));
                    status.last_state = Some(last.clone());
                });
                if self.stopped_within(backoff).await {
                    return;
                }
            }
            self.board.write(self.index, |status| {
                status.last_state = Some(last);
                status.restart_count += 1;
            });
            let base = self.host.options.restart_backoff;
            backoff = (backoff * 2).clamp(base, base * BACKOFF_LIMIT);
        }
    }

    /// Starts the process, trying again while its image, variables or program are missing. Nothing when the pod ends meanwhile.
    async fn start(&mut self) -> Option<Child> {
        loop {
            if self.stop.borrow().is_some() {
                return None;
            }
            let error = match self.spawn().await {
                Ok(child) => return Some(child),
                Err(error) => error,
            };
            let message = format!("{:#}", error.cause);
            let changed = self.board.write(self.index, |status| {
                let state = Some(waiting(error.reason, &message));
                let changed = status.state != state;
                status.state = state;
                changed
            });
            if changed {
                self.host.event(&self.pod, "Warning", "Failed", &message);
            }
            if self.stopped_within(Duration::from_secs(1)).await {
                return None;
            }
        }
    }

    async fn spawn(&self) -> Result<Child, StartError> {
        let image = self.container.image.as_deref().unwrap_or_default();
        let program = self.host.options.program(image).ok_or_else(|| StartError {
            reason: "ErrImagePull",
            cause: anyhow::anyhow!("image {image:?} is not mapped to a program"),
        })?;
        let configured = |cause| StartError { reason: "CreateContainerConfigError", cause };
        let claims = volumes::claims(&self.host.directory, &self.identity.namespace);
        let mut mounts = volumes::mounts(&self.root, &claims, &self.pod, &self.container);
        let termination_log = self.termination_log();
        fresh(&termination_log).map_err(configured)?;
        let inside = self.container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
        mounts.push((inside.to_owned(), termination_log));
        let variables = self.variables(&mounts).await.map_err(configured)?;
        let local = |text: &String| localise(&expand(text, &variables), &mounts, &self.address);
        let entrypoint: Vec<_> = self.container.command.iter().flatten().map(local).collect();
        let arguments: Vec<_> = self.container.args.iter().flatten().map(local).collect();
        let (program, arguments) = command(&program, &entrypoint, &arguments);
        let started = |cause| StartError { reason: "CreateContainerError", cause };

        let name = &self.container.name;
        let log_path = self.root.join(format!("{name}.log"));
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("failed to open {}", log_path.display()))
            .map_err(started)?;
        let offset = log.metadata().map_or(0, |metadata| metadata.len());
        let directory = self.container.working_dir.as_deref().map(Path::new).filter(|directory| directory.is_dir());
        let mut process = tokio::process::Command::new(&program);
        process
            .args(&arguments)
            .env_clear()
            .envs(&variables)
            .env(MARK, &self.host.directory)
            .current_dir(directory.unwrap_or(&self.root))
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| started(error.into()))?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true);
        let child =
            process.spawn().with_context(|| format!("failed to start {}", program.display())).map_err(started)?;
        let id = child.id().unwrap_or_default();
        let now = Timestamp::now();
        self.record.started(name, pid(id).map_err(started)?, log_path, offset);
        self.board.write(self.index, |status| {
            status.container_id = Some(format!("process://{id}"));
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(now)) }),
                ..ContainerState::default()
            });
            status.started = Some(false);
        });
        self.host.event(&self.pod, "Normal", "Started", &format!("Started container {name}"));
        Ok(child)
    }

    /// Waits for the process to end; ends it when the pod stops or a probe gives it up.
    async fn watch(&mut self, mut child: Child) -> Run {
        let started = Timestamp::now();
        let began = Instant::now();
        let group = child.id().and_then(|id| pid(id).ok());
        let (index, board, host, pod) = (self.index, self.board.clone(), self.host.clone(), self.pod.clone());
        let found = move |finding: Finding| match finding {
            Finding::Started => board.write(index, |status| status.started = Some(true)),
            Finding::Ready(ready) => board.write(index, |status| status.ready = ready),
            Finding::Failed { probe, message } => {
                host.event(&pod, "Warning", "Unhealthy", &format!("{probe} probe failed: {message}"));
            }
        };
        let container = self.container.clone();
        let address = self.address.clone();
        let record = self.record.clone();
        let mut probes = std::pin::pin!(probe(&container, &address, found, move || record.is_stalled()));
        let mut kill_at: Option<Instant> = None;
        let mut gave_up = false;
        let mut asked = false;
        let status = loop {
            let stopping = *self.stop.borrow_and_update();
            if let Some(at) = stopping {
                kill_at = Some(kill_at.map_or(at, |before| before.min(at)));
                if !asked {
                    asked = true;
                    self.host.event(&self.pod, "Normal", "Killing", &format!("Stopping container {}", container.name));
                    // The hook may take as long as the grace lasts.
                    let hook = self.pre_stop();
                    tokio::select! {
                        status = child.wait() => break status,
                        () = hook => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                    signal(group, Signal::TERM);
                }
            }
            tokio::select! {
                status = child.wait() => break status,
                changed = self.stop.changed() => if changed.is_err() {
                    // The pod's own task is gone, and the kubelet with it.
                    kill_at = Some(Instant::now());
                    asked = true;
                },
                () = tokio::time::sleep_until(kill_at.unwrap_or_else(Instant::now)), if kill_at.is_some() => {
                    signal(group, Signal::KILL);
                    break child.wait().await;
                }
                (message, grace) = &mut probes, if !gave_up && !asked => {
                    gave_up = true;
                    self.host.event(&self.pod, "Normal", "Killing", &message);
                    signal(group, Signal::TERM);
                    kill_at = Some(Instant::now() + grace.map_or_else(|| self.grace(), from_seconds));
                }
            }
        };
        self.record.ended(&container.name);
        // A container's end is the end of all its processes.
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        Run { status: status.unwrap_or_default(), started, length: began.elapsed() }
    }

    fn pre_stop(&self) -> impl Future<Output = ()> + use<> {
        let sleep = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.pre_stop.as_ref())
            .and_then(|hook| hook.sleep.as_ref())
            .map_or(0, |sleep| sleep.seconds);
        tokio::time::sleep(from_seconds(sleep))
    }

    /// The file behind `terminationMessagePath`: another one for each run, so that no run speaks for another.
    fn termination_log(&self) -> PathBuf {
        let restarts = self.board.read(self.index, |status| status.restart_count);
        self.root.join("termination-logs").join(format!("{}.{restarts}", self.container.name))
    }

    fn grace(&self) -> Duration {
        from_seconds(self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30))
    }

    fn restarts(&self, code: i32) -> bool {
        match self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => false,
            Some("OnFailure") => code != 0,
            _ => true,
        }
    }

    /// Waits, and says whether the pod is to end.
    async fn stopped_within(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.stop.wait_for(Option::is_some)).await.is_ok()
    }

    async fn variables(&self, mounts: &[(String, PathBuf)]) -> Result<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        // Nothing else of whoever runs the tests reaches the process.
        for name in ["PATH", "HOME", "RUST_LOG", "RUST_BACKTRACE"] {
            if let Ok(value) = std::env::var(name) {
                variables.insert(name.to_owned(), value);
            }
        }
        variables.insert("HOSTNAME".into(), self.identity.name.clone());
        if let Some((_, folder)) = mounts.iter().find(|(mount, _)| mount == SERVICE_ACCOUNT) {
            let path = self.root.join("kubeconfig");
            let user = format!("tokenFile: {}", folder.join("token").display());
            let content = kubeconfig(&self.server, &folder.join("ca.crt"), &user, &self.identity.namespace);
            write_private(&path, &content)?;
            variables.insert("KUBECONFIG".into(), path.display().to_string());
        }
        // Where a mount would have put it; a program that is told nothing looks there.
        variables.insert("TERMINATION_LOG".into(), self.termination_log().display().to_string());
        variables.extend(self.host.options.env.clone());
        for source in self.container.env_from.iter().flatten() {
            let prefix = source.prefix.clone().unwrap_or_default();
            let (kind, name, optional, found) = if let Some(from) = &source.config_map_ref {
                let found = volumes::config_map(&self.host.client, &self.identity.namespace, &from.name).await?;
                ("ConfigMap", &from.name, from.optional, found)
            } else if let Some(from) = &source.secret_ref {
                let found = volumes::secret(&self.host.client, &self.identity.namespace, &from.name).await?;
                ("Secret", &from.name, from.optional, found)
            } else {
                continue;
            };
            match found {
                Some(found) => variables.extend(
                    found
                        .into_iter()
                        .map(|(key, value)| (format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned())),
                ),
                None if optional == Some(true) => {}
                None => bail!("{kind} {name:?} not found"),
            }
        }
        for variable in self.container.env.iter().flatten() {
            if let Some(value) = self.value(variable, &variables).await? {
                variables.insert(variable.name.clone(), localise(&value, mounts, &self.address));
            }
        }
        Ok(variables)
    }

    async fn value(&self, variable: &EnvVar, before: &BTreeMap<String, String>) -> Result<Option<String>> {
        let Some(source) = &variable.value_from else {
            return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), before)));
        };
        if let Some(reference) = &source.field_ref {
            let path = &reference.field_path;
            return field(&self.pod, &self.address, path).map(Some).with_context(|| format!("no field {path:?}"));
        }
        if let Some(reference) = &source.resource_field_ref {
            let limits = self.container.resources.as_ref();
            let (map, resource) = match reference.resource.split_once('.') {
                Some(("requests", resource)) => (limits.and_then(|limits| limits.requests.as_ref()), resource),
                Some((_, resource)) => (limits.and_then(|limits| limits.limits.as_ref()), resource),
                None => bail!("no resource {:?}", reference.resource),
            };
            let amount = map.and_then(|map| map.get(resource)).and_then(|amount| quantity(&amount.0)).unwrap_or(1.0);
            let divisor = reference.divisor.as_ref().and_then(|divisor| quantity(&divisor.0)).filter(|by| *by > 0.0);
            return Ok(Some(format!("{:.0}", (amount / divisor.unwrap_or(1.0)).ceil())));
        }
        let (kind, name, key, optional, found) = if let Some(from) = &source.config_map_key_ref {
            let found = volumes::config_map(&self.host.client, &self.identity.namespace, &from.name).await?;
            ("ConfigMap", &from.name, &from.key, from.optional, found)
        } else if let Some(from) = &source.secret_key_ref {
            let found = volumes::secret(&self.host.client, &self.identity.namespace, &from.name).await?;
            ("Secret", &from.name, &from.key, from.optional, found)
        } else {
            bail!("the process kubelet does not know where {:?} comes from", variable.name);
        };
        match found.and_then(|mut found| found.remove(key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if optional == Some(true) => Ok(None),
            None => bail!("{kind} {name:?} has no key {key:?}"),
        }
    }
}

/// Why a container has not started: the waiting reason, and the cause.
struct StartError {
    reason: &'static str,
    cause: anyhow::Error,
}

pub(crate) fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = (!message.is_empty()).then(|| message.to_owned());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.into()), message }),
        ..ContainerState::default()
    }
}

/// An empty file in place of whatever is there.
fn fresh(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    fs::write(path, "").with_context(|| format!("failed to create {}", path.display()))
}

/// The end of a termination log; nothing when nothing was written.
fn message(path: &Path) -> Option<String> {
    let read = || {
        let mut file = fs::File::open(path)?;
        let skipped = file.metadata()?.len().saturating_sub(MESSAGE_LIMIT);
        file.seek(SeekFrom::Start(skipped))?;
        let mut content = Vec::new();
        file.take(MESSAGE_LIMIT).read_to_end(&mut content)?;
        std::io::Result::Ok(content)
    };
    let content = read().unwrap_or_default();
    (!content.is_empty()).then(|| String::from_utf8_lossy(&content).into_owned())
}

/// To the process itself, as to a container's process 1. It has ended already when this fails.
fn signal(process: Option<Pid>, signal: Signal) {
    if let Some(process) = process {
        let _ = kill_process(process, signal);
    }
}

fn from_seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_the_end_of_the_file_and_each_run_begins_without() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/c.0");
        assert_eq!(message(&path), None);
        fresh(&path).unwrap();
        assert_eq!(message(&path), None);
        fs::write(&path, format!("begin{}end\n", "-".repeat(4092))).unwrap();
        let last = message(&path).unwrap();
        assert_eq!((last.len(), last.ends_with("-end\n"), last.contains("begin")), (4096, true, false));
        fs::write(&path, [b'a', 0xff]).unwrap();
        assert_eq!(message(&path).as_deref(), Some("a\u{fffd}"));
        fresh(&path).unwrap();
        assert_eq!(message(&path), None);
    }
}
