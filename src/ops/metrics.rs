//! Placeholder until merge.
use std::time::Duration;
/// Metrics.
#[derive(Clone, Default)]
pub struct Metrics;
#[allow(missing_docs)]
impl Metrics {
    pub fn set_leading(&self, _kind: &str, _leading: bool) {}
    pub fn transition(&self, _kind: &str) {}
    pub fn renewed(&self, _kind: &str, _latency: Duration) {}
    pub fn without_owner(&self, _kind: &str, _time: Duration) {}
    pub fn drained(&self, _kind: &str, _time: Duration) {}
    pub fn aborted(&self, _kind: &str) {}
    pub fn fenced(&self, _kind: &str) {}
    pub fn blocked(&self, _kind: &str, _blocked: bool) {}
    pub fn lease_request(&self, _verb: &str, _outcome: &str) {}
    pub fn term_failed(&self, _kind: &str) {}
}
