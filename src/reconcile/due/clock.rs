//! The wall clock, as an argument.

use k8s_openapi::jiff::Timestamp;

/// Tells the wall-clock time. Objects carry wall-clock times of the API server, so no monotonic clock will do;
/// nothing about leadership is ever decided by it.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "ages of objects are counted in the API server's time of day")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
