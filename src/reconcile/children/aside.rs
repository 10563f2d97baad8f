//! Where composing delays no other work.
//!
//! Most objects take microseconds, and to change threads takes longer. So each is tried briefly where its kind works, and what
//! takes more than that is composed on a thread of its own: meanwhile the kind goes on with other objects. It is the count of
//! the work that decides, and no clock, so that no pass depends on how busy a machine is.

use std::panic::resume_unwind;

use futures::future::{Either, select};
use tokio::task::spawn_blocking;

use super::desired::Effort;

/// Does the work briefly; if that is not enough, aside. `None`: the term drains, and does not wait for it. What it has not
/// come to yet is the next leader's to find.
pub(super) async fn compose<T: Send + 'static>(
    is_brief: bool,
    draining: impl Future<Output = ()>,
    work: impl Fn(Effort) -> Option<T> + Send + 'static,
) -> Option<T> {
    if is_brief && let Some(done) = work(Effort::Brief) {
        return Some(done);
    }
    // Nothing that it does can be seen but its answer, so it can be left to itself: what it may cost is bounded.
    let aside = spawn_blocking(move || work(Effort::Full));
    match select(aside, std::pin::pin!(draining)).await {
        Either::Left((Ok(done), _)) => done,
        Either::Left((Err(ended), _)) => match ended.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Only a runtime that ends cancels it.
            Err(_) => None,
        },
        Either::Right(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::mpsc,
        time::Duration,
    };

    use futures::FutureExt;
    use tokio::{task::yield_now, time::timeout};

    use super::*;

    const ENOUGH: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn what_is_brief_is_done_at_once() {
        let done = compose(true, pending(), |effort| (effort == Effort::Brief).then_some(1));
        assert_eq!(done.now_or_never(), Some(Some(1)));
    }

    /// On a runtime of one thread, which would be held up by whatever blocks it.
    #[tokio::test]
    async fn what_takes_long_holds_up_neither_others_nor_a_drain() {
        for drains in [false, true] {
            let (go_on, goes_on) = mpsc::channel::<()>();
            let goes_on = std::sync::Mutex::new(goes_on);
            let work = move |effort| {
                (effort == Effort::Full).then(|| _ = goes_on.lock().map(|goes_on| goes_on.recv_timeout(ENOUGH)))
            };
            let draining = if drains { ready(()).boxed() } else { pending().boxed() };
            let others = async {
                yield_now().await;
                _ = go_on.send(());
            };
            let (done, ()) = timeout(ENOUGH, futures::future::join(compose(true, draining, work), others))
                .await
                .expect("others go on");
            assert_eq!(done.is_none(), drains);
        }
    }
}
