//! A term that is lost at any moment, for tests of reconcilers.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use kube::Client;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::Layer as _;

use super::server::{Request, Server};
use crate::{
    config::Kind,
    ops::work::Meter,
    replica::{
        clock::Clock,
        fence::Fence,
        term::{BoxError, FencingToken, Reconciler, Term},
    },
};

/// How a term ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Its validity runs out while the process stands still, as in a long pause: the fence is shut, and the reconciler goes on
    /// from where it was, and does not know.
    Paused,
    /// Another replica has the Lease: the fence is shut and the task of the reconciler is dropped. What it has spawned goes on.
    Aborted,
    /// It is asked to drain, as before a handover. The reconciler takes no new work, ends what runs, and returns; then the fence
    /// shuts and the Lease is released.
    Drained,
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tried {
    /// Moments at which the term was lost: each time that the reconciler waited, by each [`Loss`] once.
    pub moments: usize,
    /// Writes that have reached the API server during terms.
    pub written: usize,
    /// Writes that a fence has refused after its term. That is as it should be: nothing was sent.
    pub refused: usize,
}

/// What a reconciler must not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Late {
    /// It has written after its term, or before one, by a client that is not the term's.
    #[error(
        "after its term had ended ({loss:?}, at wait number {wait}), the reconciler has written {} {}: write through Term::client only",
        .request.method, .request.path
    )]
    Wrote {
        /// How the term was lost.
        loss: Loss,
        /// When: as the reconciler waited for the so-many-th time, from 1.
        wait: usize,
        /// The first such request.
        request: Request,
    },
    /// It was asked to drain, and did not return.
    #[error("it was asked to drain at wait number {wait}, and has not returned within {} s: end when Term::draining resolves", .within.as_secs())]
    NoEnd {
        /// When it was asked.
        wait: usize,
        /// How long it had.
        within: Duration,
    },
    /// It has ended by itself while its term went on.
    #[error(
        "it has ended by itself after it had waited {waits} times: a reconciler returns when Term::draining resolves"
    )]
    Ended {
        /// How often it had waited.
        waits: usize,
        /// Its error, if it had one.
        #[source]
        error: Option<BoxError>,
    },
}

/// Runs a reconciler under terms that are lost at each moment at which it waits, one after the other, and holds it to this:
/// nothing is written after the term.
///
/// Each time the reconciler and the API server are made anew. The term is lost at the first wait of the reconciler, then at the
/// second, and so on, until it has come to rest before; each time by every [`Loss`]. Use it in a test with paused time
/// (`#[tokio::test(start_paused = true)]`, with tokio's feature `test-util`): then back-offs, resyncs and drains cost nothing.
///
/// ```
/// use k8s_openapi::api::core::v1::ConfigMap;
/// use kube::{Api, api::{ObjectMeta, Patch, PatchParams}};
/// use leasehold::{BoxError, Kind, Term, testing::{Server, Trial}};
/// use serde_json::json;
///
/// /// Counts up as long as it leads.
/// async fn count(term: Term) -> Result<(), BoxError> {
///     let api: Api<ConfigMap> = Api::namespaced(term.client(), "default");
///     let mut draining = std::pin::pin!(term.draining());
///     for number in 0.. {
///         let patch = Patch::Merge(json!({"data": {"number": format!("{number}")}}));
///         if let Err(error) = api.patch("counter", &PatchParams::default(), &patch).await {
///             println!("not written: {error}");
///         }
///         tokio::select! {
///             () = &mut draining => break,
///             () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
///         }
///     }
///     Ok(())
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), leasehold::testing::Late> {
/// let metadata = ObjectMeta { name: Some("counter".into()), namespace: Some("default".into()), ..ObjectMeta::default() };
/// let counter = ConfigMap { metadata, ..ConfigMap::default() };
/// let tried = Trial::new(Kind::of::<ConfigMap>())
///     .server(move || Server::new().with(&counter))
///     .most(20)
///     .run(|_server| count)
///     .await?;
/// assert!(tried.written > 0 && tried.refused > 0);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Trial {
    kind: Kind,
    server: Box<dyn Fn() -> Server + Send + Sync>,
    most: usize,
    rest: Duration,
    drain_timeout: Duration,
}

/// After the loss of a term: long enough for a retry or a spawned task to write late.
const AFTER: Duration = Duration::from_secs(120);

impl Trial {
    /// A trial of a reconciler of this kind, over an API server without objects.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            server: Box::new(Server::new),
            most: 200,
            rest: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }

    /// The API server at the beginning of each term.
    pub fn server(self, make: impl Fn() -> Server + Send + Sync + 'static) -> Self {
        Self { server: Box::new(make), ..self }
    }

    /// The term is lost at so many waits at the most; 200 without this.
    pub fn most(self, waits: usize) -> Self {
        Self { most: waits, ..self }
    }

    /// The reconciler has come to rest when a term has lasted so long; 60 s without this.
    pub fn rest(self, rest: Duration) -> Self {
        Self { rest, ..self }
    }

    /// How long the reconciler has to end when it is asked to drain; 30 s without this.
    pub fn drain_timeout(self, timeout: Duration) -> Self {
        Self { drain_timeout: timeout, ..self }
    }

    /// Runs it. `make` makes the reconciler anew for each term; it gets the API server, to be read beside the reconciler.
    ///
    /// # Cancellation
    /// Dropping the future ends the reconciler that runs; what that has spawned goes on.
    ///
    /// # Errors
    /// The first thing that the reconciler must not do.
    pub async fn run<R: Reconciler>(self, make: impl Fn(&Server) -> R) -> Result<Tried, Late> {
        let mut tried = Tried::default();
        for loss in [Loss::Paused, Loss::Aborted, Loss::Drained] {
            for wait in 1..=self.most {
                let server = (self.server)();
                let reconciler = make(&server);
                if !self.lose(&server, &reconciler, loss, wait, &mut tried).await? {
                    break;
                }
                tried.moments += 1;
            }
        }
        Ok(tried)
    }

    /// One term, lost at that wait; `false`: the reconciler came to rest before.
    async fn lose(
        &self,
        server: &Server,
        reconciler: &impl Reconciler,
        loss: Loss,
        wait: usize,
        tried: &mut Tried,
    ) -> Result<bool, Late> {
        let clock = Clock::tokio();
        let refused = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&refused);
        let fence = Fence::new(self.kind.lease_name.clone(), None, clock, move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        fence.extend(clock.now() + self.rest + AFTER + self.drain_timeout);
        let drain = CancellationToken::new();
        let term = Term::new(
            Arc::new(self.kind.clone()),
            "tested_0000000000000001".to_owned(),
            FencingToken { uid: "00000000-0000-4000-8000-000000000000".to_owned(), transitions: 1 },
            Client::new(fence.gate().layer(server.service()), "default"),
            drain.clone(),
            Meter::default(),
        );
        let writes = || server.requests().into_iter().filter(Request::is_write).collect::<Vec<_>>();
        let mut work = Some(reconciler.run(term));
        let mut waits = 0;
        // Until the reconciler has waited so often. A wake-up that finds nothing to do counts too: it is a moment like others.
        let until_wait = poll_fn(|cx| {
            let Some(work) = work.as_mut() else { return Poll::Ready(Ok(())) };
            if let Poll::Ready(ended) = work.as_mut().poll(cx) {
                return Poll::Ready(Err(ended));
            }
            waits += 1;
            if waits >= wait { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        match timeout(self.rest, until_wait).await {
            Ok(Ok(())) => {}
            Ok(Err(ended)) => return Err(Late::Ended { waits, error: ended.err() }),
            Err(_at_rest) => return Ok(false),
        }
        match loss {
            Loss::Paused => fence.close(),
            Loss::Aborted => {
                fence.close();
                work = None;
            }
            Loss::Drained => {
                drain.cancel();
                if let Some(work) = work.take()
                    && timeout(self.drain_timeout, work).await.is_err()
                {
                    return Err(Late::NoEnd { wait, within: self.drain_timeout });
                }
                fence.close();
            }
        }
        let before = writes().len();
        match work {
            // It may end by itself when its writes fail, and then what it has spawned goes on.
            Some(work) => {
                let mut work = pin!(work);
                let _ended = timeout(AFTER, &mut work).await;
                sleep(AFTER).await;
            }
            None => sleep(AFTER).await,
        }
        tried.written += before;
        tried.refused += refused.load(Ordering::SeqCst);
        match writes().into_iter().nth(before) {
            Some(request) => Err(Late::Wrote { loss, wait, request }),
            None => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{
        Api,
        api::{ObjectMeta, Patch, PatchParams},
        runtime::{Controller, controller::Action, watcher},
    };
    use serde_json::json;

    use super::*;

    fn server() -> Server {
        let object = |name: &str| ConfigMap {
            metadata: ObjectMeta { name: Some(name.into()), namespace: Some("ns".into()), ..Default::default() },
            ..Default::default()
        };
        Server::new().with(&object("a")).with(&object("b"))
    }

    fn trial() -> Trial {
        Trial::new(Kind::of::<ConfigMap>()).server(server).most(40)
    }

    async fn write(client: Client, name: &str) -> Result<ConfigMap, kube::Error> {
        let api: Api<ConfigMap> = Api::namespaced(client, "ns");
        let number = format!("{:?}", Clock::tokio().now());
        api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"data": {"at": number}}))).await
    }

    async fn reconcile(object: Arc<ConfigMap>, term: Arc<Term>) -> Result<Action, kube::Error> {
        write(term.client(), object.metadata.name.as_deref().unwrap_or_default()).await?;
        Ok(Action::requeue(Duration::from_secs(10)))
    }

    async fn control(term: Term) -> Result<(), BoxError> {
        let controller = Controller::new(Api::<ConfigMap>::all(term.client()), watcher::Config::default());
        let on_error = |_, _: &kube::Error, _| Action::requeue(Duration::from_secs(5));
        term.control(controller, reconcile, on_error, Arc::new(term.clone())).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_controller_under_its_term_writes_nothing_after_it_whenever_that_is_lost() {
        let tried = trial().run(|_| control).await.unwrap();
        assert!(tried.moments > 30 && tried.written > 20 && tried.refused > 5, "{tried:?}");
    }

    /// One that has kept a client of its own.
    #[tokio::test(start_paused = true)]
    async fn a_reconciler_that_writes_past_its_term_is_caught() {
        let past = |server: &Server| {
            let client = server.client();
            move |term: Term| {
                let client = client.clone();
                async move {
                    let mut draining = pin!(term.draining());
                    loop {
                        let _written = write(client.clone(), "a").await;
                        tokio::select! {
                            () = &mut draining => return Ok(()),
                            () = sleep(Duration::from_secs(1)) => {}
                        }
                    }
                }
            }
        };
        let late = trial().run(past).await.unwrap_err();
        assert!(matches!(&late, Late::Wrote { loss: Loss::Paused, .. }), "{late}");
        assert!(late.to_string().contains("PATCH /api/v1/namespaces/ns/configmaps/a"), "{late}");
    }

    /// One whose spawned task outlives it.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_outlives_its_reconciler_is_caught_if_it_writes() {
        let outlived = |server: &Server| {
            let client = server.client();
            move |term: Term| {
                let client = client.clone();
                async move {
                    let mut own = tokio::task::JoinSet::new();
                    own.spawn(async move {
                        sleep(Duration::from_secs(5)).await;
                        write(client, "a").await.map(drop)
                    });
                    own.detach_all();
                    term.draining().await;
                    Ok(())
                }
            }
        };
        let late = trial().run(outlived).await.unwrap_err();
        assert!(matches!(late, Late::Wrote { .. }), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reconciler_that_does_not_drain_or_ends_by_itself_is_caught() {
        let never = |_term: Term| async move { std::future::pending::<Result<(), BoxError>>().await };
        let late = trial().run(|_| never).await.unwrap_err();
        assert!(matches!(late, Late::NoEnd { wait: 1, .. }), "{late}");
        let fails = |_term: Term| async move {
            sleep(Duration::from_secs(1)).await;
            Err::<(), BoxError>("it broke".into())
        };
        let late = trial().most(5).run(|_| fails).await.unwrap_err();
        assert!(matches!(late, Late::Ended { waits: 1, .. }), "{late}");
    }
}
