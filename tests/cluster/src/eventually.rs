//! Waiting for a condition, with a deadline and the last thing seen.

use std::{
    fmt::{Debug, Display},
    future::Future,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(100);

/// Polls `look` every 100 ms until `enough` holds, and returns what it saw.
///
/// A `look` that fails is tried again, since a control plane under test may be down on purpose.
///
/// # Errors
/// After `deadline` the error names `what` and shows the last value or failure seen.
pub async fn eventually<T, E, F>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
    enough: impl Fn(&T) -> bool,
) -> anyhow::Result<T>
where
    T: Debug,
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let started = Instant::now();
    let mut last = String::from("nothing: the first look did not end in time");
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match tokio::time::timeout(left.max(POLL), look()).await {
            Ok(Ok(seen)) if enough(&seen) => return Ok(seen),
            Ok(Ok(seen)) => last = format!("{seen:?}"),
            Ok(Err(error)) => last = format!("error: {error:#}"),
            Err(_) => {}
        }
        if started.elapsed() >= deadline {
            anyhow::bail!("{what}: not within {deadline:?}; last seen: {last}");
        }
        tokio::time::sleep(POLL).await;
    }
}
