//! An observation: what a replica sees of a kind whether it leads it or not.
//!
//! It belongs to the process and to no term: elections begin and end without it, and it delays none of them. Its client is
//! behind a fence that never opens.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures::FutureExt;
use kube::Client;

use super::{
    clock::Clock,
    fence::Fence,
    leadership::Signal,
    problem::{describe, panicked},
    telemetry::Telemetry,
    term::{BoxError, Reconciler},
};
use crate::config::Kind;

/// The pause after an observer has ended by itself; it doubles each time.
const FIRST: Duration = Duration::from_secs(1);
/// The longest of these pauses.
const LONGEST: Duration = Duration::from_secs(300);

/// What an observer of a kind has. Clones are handles on the same.
#[derive(Clone)]
pub struct Observation {
    kind: Arc<Kind>,
    leadership: Signal,
    client: Arc<LazyLock<Client, MakesClient>>,
}

/// Most kinds are not observed, and need none.
type MakesClient = Box<dyn FnOnce() -> Client + Send>;

impl Observation {
    pub(crate) fn new(kind: Arc<Kind>, leadership: Signal, client: impl FnOnce() -> Client + Send + 'static) -> Self {
        let make: MakesClient = Box::new(client);
        Self { kind, leadership, client: Arc::new(LazyLock::new(make)) }
    }

    /// The kind this is about.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Reads, and refuses to write: nothing is sent, the write fails with `kube::Error::Service` around
    /// [`Fenced`](super::fence::Fenced), and is counted.
    pub fn client(&self) -> Client {
        (**self.client).clone()
    }

    /// Whether this replica leads the kind.
    pub fn leadership(&self) -> Signal {
        self.leadership.clone()
    }
}

/// An observer, as long as the replica runs. `_fence` is that of its client, and shuts with it.
pub(super) async fn keep(
    reconciler: Arc<dyn Reconciler>,
    observation: Observation,
    mut observing: futures::future::BoxFuture<'static, Result<(), BoxError>>,
    _fence: Fence,
    clock: Clock,
    telemetry: Telemetry,
) {
    let mut pause = FIRST;
    loop {
        let began = clock.now();
        let why = ended(AssertUnwindSafe(observing).catch_unwind().await);
        if clock.now().since(began) > LONGEST {
            pause = FIRST;
        }
        telemetry.observer_ended(observation.kind(), &why, pause);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
        let Some(again) = reconciler.observe(observation.clone()) else { return };
        observing = again;
    }
}

/// How an observer has ended.
fn ended(result: std::thread::Result<Result<(), BoxError>>) -> String {
    match result {
        Ok(Ok(())) => "has ended".to_owned(),
        Ok(Err(error)) => format!("has failed: {}", describe(error.as_ref())),
        Err(panic) => format!("has panicked: {}", panicked(panic.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::{BoxFuture, pending};
    use tokio::time::timeout;

    use super::*;
    use crate::{
        ops::{metrics::Metrics, status::Status},
        replica::{
            leadership::{Leaderships, Of},
            term::Term,
        },
    };

    /// Ends in a way of its own each time.
    struct Fails {
        clock: Clock,
        begun: Mutex<Vec<u64>>,
    }

    impl Reconciler for Fails {
        fn run(&self, _: Term) -> BoxFuture<'static, Result<(), BoxError>> {
            Box::pin(pending())
        }

        fn observe(&self, _: Observation) -> Option<BoxFuture<'static, Result<(), BoxError>>> {
            let mut begun = self.begun.lock().unwrap();
            begun.push(self.clock.now().since_origin().as_secs());
            let number = begun.len();
            Some(Box::pin(async move {
                match number {
                    1 => Ok(()),
                    2 => Err("not today".into()),
                    3 => panic!("never"),
                    4 => {
                        tokio::time::sleep(2 * LONGEST).await;
                        Ok(())
                    }
                    _ => Err("again".into()),
                }
            }))
        }
    }

    #[test]
    fn the_end_of_an_observer_names_each_cause_and_what_a_panic_says() {
        let error = std::io::Error::other(kube::Error::Service("gone".into()));
        assert_eq!(ended(Ok(Err(error.into()))), "has failed: ServiceError: gone");
        let status = serde_json::from_value(serde_json::json!({"code": 403, "message": "may not"})).unwrap();
        let refused = kube::Error::Api(Box::new(status));
        assert_eq!(ended(Ok(Err(refused.into()))), "has failed: 403 may not");
        assert_eq!(ended(Err(Box::new("never"))), "has panicked: never");
    }

    #[tokio::test(start_paused = true)]
    async fn an_observer_that_ends_begins_again_after_a_pause_that_grows_and_is_counted() {
        let kind = Arc::new(Kind::new("x", "v1", "A"));
        let (clock, metrics) = (Clock::tokio(), Metrics::default());
        let reconciler = Arc::new(Fails { clock, begun: Mutex::default() });
        let signal = Leaderships::default().subscribe(Of::Process).unwrap();
        let observation = Observation::new(Arc::clone(&kind), signal, || panic!("nothing asks for a client"));
        let telemetry =
            Telemetry::new("me".to_owned(), "ns".to_owned(), vec![kind], Status::default(), metrics.clone());
        let fence = Fence::new("a.x".to_owned(), None, clock, |_| ());
        let first = reconciler.observe(observation.clone()).unwrap();
        let kept = keep(Arc::clone(&reconciler) as _, observation, first, fence, clock, telemetry);
        timeout(Duration::from_secs(612), kept).await.expect_err("it goes on");
        let began = reconciler.begun.lock().unwrap().clone();
        let began: Vec<_> = began.iter().map(|at| at - began[0]).collect();
        assert_eq!(began, [0, 1, 3, 7, 608, 610], "one that has worked for long begins at once");
        assert!(metrics.encode().unwrap().contains("leasehold_observer_failures_total{kind=\"A.x\"} 6"));
    }
}
