//! Child processes that never outlive their owner.
//!
//! A small shell process, the reaper, reads a pipe whose other end this process holds.
//! The pipe ends however this process ends: return, panic, Ctrl-C or SIGKILL.
//! Then the reaper kills every process that bears this cluster's mark in its environment, and removes the directory.
//! The mark reaches grandchildren too, and cannot hit a recycled pid.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The environment variable every process of a cluster bears; its value is the cluster's directory.
pub(crate) const MARK: &str = "LEASEHOLD_CLUSTER";

const REAPER: &str = r#"
trap '' HUP INT TERM
dir=$1 keep=$2
while read -r _; do :; done
for round in 1 2 3 4 5 6 7 8 9 10; do
    found=$(grep -lszxF "LEASEHOLD_CLUSTER=$dir" /proc/[0-9]*/environ 2>/dev/null)
    [ -n "$found" ] || break
    for file in $found; do
        pid=${file#/proc/}
        kill -KILL "${pid%/environ}" 2>/dev/null
    done
    sleep 0.05
done
[ "$keep" = keep ] || rm -rf "$dir"
"#;

/// Kills a cluster's processes and removes its directory once this value, or this process, is gone.
pub(crate) struct Reaper {
    pipe: Option<ChildStdin>,
    shell: Child,
}

impl Reaper {
    pub(crate) fn start(directory: &Path, keep: bool) -> Result<Self> {
        let mut shell = Command::new("sh")
            .arg("-c")
            .arg(REAPER)
            .arg("leasehold-cluster-reaper")
            .arg(directory)
            .arg(if keep { "keep" } else { "remove" })
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C in a terminal goes to the whole foreground group, which the reaper must survive.
            .process_group(0)
            .spawn()
            .context("failed to start the reaper (sh)")?;
        Ok(Self { pipe: shell.stdin.take(), shell })
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.pipe.take();
        // The directory is gone when the owner's drop returns; there is nothing to do about a failure.
        let _ = self.shell.wait();
    }
}

/// A long-lived child process with its output in a file.
pub(crate) struct Process {
    name: &'static str,
    pid: Pid,
    child: Mutex<Child>,
}

impl Process {
    pub(crate) fn start(name: &'static str, mark: &Path, log: &Path, command: &mut Command) -> Result<Self> {
        let log =
            File::options().create(true).append(true).open(log).with_context(|| format!("failed to open {log:?}"))?;
        let child = command
            .env(MARK, mark)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name, pid: pid(child.id())?, child: Mutex::new(child) })
    }

    pub(crate) const fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// How it ended, or nothing while it runs.
    pub(crate) fn ended(&self) -> Result<Option<ExitStatus>> {
        Ok(self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()?)
    }

    /// Sends a signal. Nothing happens when it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        // The lock keeps the pid ours: it is only freed by a wait.
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.try_wait()?.is_none() {
            kill_process(self.pid, signal).with_context(|| format!("failed to signal {}", self.name))?;
        }
        Ok(())
    }

    /// SIGTERM, and SIGKILL after `grace`. Returns when it has ended.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        // A stopped process would never see the SIGTERM.
        self.signal(Signal::CONT)?;
        let asked = Instant::now();
        let mut killed = false;
        while self.ended()?.is_none() {
            if !killed && asked.elapsed() >= grace {
                self.signal(Signal::KILL)?;
                killed = true;
            }
            if asked.elapsed() > grace + Duration::from_secs(10) {
                bail!("{} did not end after SIGKILL", self.name);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// SIGKILL, without waiting for anything else.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Seconds that a process has spent on CPUs, in its own code and in the kernel (`/proc/PID/stat`, proc(5)).
///
/// # Errors
/// When there is no such process.
pub fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").context("stat")?.1;
    let ticks: Vec<f64> = after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse().ok()).collect();
    // Linux counts in hundredths of a second, whatever its own clock.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// A process id as `rustix` wants it.
pub(crate) fn pid(id: u32) -> Result<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw).with_context(|| format!("{id} is no process id"))
}

/// Exit code and signal as a kubelet reports them: 128 + signal for a killed process.
pub(crate) fn exit_code(status: ExitStatus) -> (i32, Option<i32>) {
    match (status.code(), status.signal()) {
        (Some(code), _) => (code, None),
        (None, Some(signal)) => (128 + signal, Some(signal)),
        (None, None) => (255, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reaper_kills_what_bears_the_mark_and_its_children_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap().keep();
        let reaper = Reaper::start(&directory, false).unwrap();
        // Beside it, a process of another cluster whose directory begins with the same letters.
        let mut other = Command::new("sleep").arg("60").env(MARK, directory.join("other")).spawn().unwrap();
        let mut marked =
            Command::new("sh").args(["-c", "sleep 60 & wait"]).env(MARK, &directory).process_group(0).spawn().unwrap();
        let group = pid(marked.id()).unwrap();
        drop(reaper);
        assert_eq!(marked.wait().unwrap().signal(), Some(9));
        let started = Instant::now();
        // The grandchild is gone once whoever inherited it has waited for it.
        while rustix::process::test_kill_process_group(group).is_ok() && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(20));
        }
        rustix::process::test_kill_process_group(group).unwrap_err();
        assert!(!directory.exists());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
