//! What tests and `kubectl logs` ask about a pod: its processes, its logs, its proxy. Kept after the pod has gone.

use crate::proxy::FaultProxy;
use rustix::process::Pid;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// One pod.
pub(crate) struct Record {
    pub(crate) proxy: Option<FaultProxy>,
    containers: Mutex<BTreeMap<String, Runs>>,
    stalled: AtomicBool,
}

/// One container's runs: all write one log file.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    /// The process of the current run.
    pub(crate) pid: Option<Pid>,
    /// The log of all runs.
    pub(crate) log: PathBuf,
    /// Where in the log each run begins.
    pub(crate) offsets: Vec<u64>,
}

impl Record {
    pub(crate) fn new(proxy: Option<FaultProxy>) -> Self {
        Self { proxy, containers: Mutex::default(), stalled: AtomicBool::new(false) }
    }

    pub(crate) fn started(&self, container: &str, pid: Pid, log: PathBuf, offset: u64) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        let runs =
            containers.entry(container.to_owned()).or_insert_with(|| Runs { pid: None, log, offsets: Vec::new() });
        runs.pid = Some(pid);
        runs.offsets.push(offset);
    }

    pub(crate) fn ended(&self, container: &str) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runs) = containers.get_mut(container) {
            runs.pid = None;
        }
    }

    pub(crate) fn runs(&self, container: &str) -> Option<Runs> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).get(container).cloned()
    }

    pub(crate) fn containers(&self) -> BTreeMap<String, Runs> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its machine stands still.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    pub(crate) fn stall(&self, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
    }

    pub(crate) fn pids(&self) -> Vec<Pid> {
        self.containers().into_values().filter_map(|runs| runs.pid).collect()
    }
}
