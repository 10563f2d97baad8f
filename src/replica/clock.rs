//! Where [`Moment`]s come from.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

use crate::protocol::moment::Moment;

/// A pause of about that length, by a fifth more or less: replicas that begin together shall not ask together for ever.
pub fn about(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Reads monotonic time. Copies read the same clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Source);

#[derive(Clone, Copy, Debug)]
enum Source {
    BootTime,
    Tokio(tokio::time::Instant),
}

impl Clock {
    /// The machine's clock, counting the time a virtual machine was suspended:
    /// `CLOCK_MONOTONIC` stands still then, and a term would seem valid for longer than it is.
    pub const fn system() -> Self {
        Self(Source::BootTime)
    }

    /// Tokio's clock, which a test can pause.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that others are given")]
    pub fn tokio() -> Self {
        Self(Source::Tokio(tokio::time::Instant::now()))
    }

    /// The present moment.
    pub fn now(self) -> Moment {
        Moment::after_origin(match self.0 {
            Source::BootTime => {
                let time = clock_gettime(ClockId::Boottime);
                Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
            }
            // An hour on, so that "a moment ago" never falls before the origin.
            Source::Tokio(origin) => origin.elapsed() + Duration::from_secs(3600),
        })
    }

    /// The instant of tokio's clock at this moment, to be shown.
    #[expect(clippy::disallowed_methods, reason = "shown to people, never decided by")]
    pub fn instant(self, moment: Moment) -> tokio::time::Instant {
        let (now, instant) = (self.now(), tokio::time::Instant::now());
        match moment >= now {
            true => instant + moment.since(now),
            false => instant.checked_sub(now.since(moment)).unwrap_or(instant),
        }
    }

    /// Sleeps until `moment`. Cancel safe.
    pub async fn sleep_until(self, moment: Moment) {
        if moment == Moment::NEVER {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(moment.since(self.now())).await;
    }
}
