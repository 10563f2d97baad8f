//! Reads the configuration by which the API server asks our webhooks, on every replica, and keeps what follows for each kind:
//! while the API server may store an object unasked, nothing rests on its author having been asked about.
//!
//! It fails closed. What cannot be read for [`STALE`] counts as not there, and that is seen where it is used: a thread that hangs
//! keeps no limit lifted.

use std::{collections::BTreeMap, time::Duration};

use futures::{Stream, stream};
use kube::{
    Api, Client,
    api::DynamicObject,
    core::{ApiResource, GroupVersionKind},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::coverage::{Checked, judge};
use crate::{
    config::WebhookSettings,
    ops::{metrics::Metrics, status::Status},
    replica::problem::describe,
};

/// From the end of one look to the next one. What is stored meanwhile is taken for asked about if it was before.
pub const LOOK: Duration = Duration::from_secs(3);
/// For so long what was read last holds.
pub const STALE: Duration = Duration::from_secs(20);

/// For each kind, whether the API server asks about every object of it, or where the first gap is.
type Judged = BTreeMap<String, Result<(), String>>;

/// What is known of the kinds whose authors are asked about; clones share it.
#[derive(Clone, Debug)]
pub struct Coverages {
    state: watch::Sender<State>,
}

#[derive(Debug)]
struct State {
    /// Empty until something was read.
    judged: Judged,
    /// When that was, or when this process began to wait for it.
    read: Instant,
}

impl State {
    fn is_stale(&self) -> bool {
        self.read.elapsed() >= STALE
    }
}

impl Default for Coverages {
    fn default() -> Self {
        Self { state: watch::Sender::new(State { judged: Judged::new(), read: now() }) }
    }
}

impl Coverages {
    /// What is known of a kind, `<Kind>.<group>`.
    pub fn of(&self, kind: impl Into<String>) -> Coverage {
        Coverage { kind: kind.into(), state: self.state.subscribe() }
    }

    /// What was read just now.
    pub(crate) fn read(&self, judged: Judged) {
        self.state.send_if_modified(|state| {
            let is_news = state.is_stale() || state.judged != judged;
            *state = State { judged, read: now() };
            is_news
        });
    }

    /// What was read last holds no longer, if it is too old.
    fn expire(&self, kinds: &[Checked], why: &str) {
        self.state.send_if_modified(|state| {
            let judged: Judged = kinds.iter().map(|kind| (kind.kind.clone(), Err(why.to_owned()))).collect();
            let is_news = state.is_stale() && state.judged != judged;
            if is_news {
                state.judged = judged;
            }
            is_news
        });
    }
}

/// What is known of one kind.
#[derive(Clone, Debug)]
pub struct Coverage {
    kind: String,
    state: watch::Receiver<State>,
}

impl Coverage {
    /// Whether the API server asks about every object of the kind; `None` until that is known, for [`STALE`] at the most.
    pub fn now(&self) -> Option<bool> {
        let state = self.state.borrow();
        match state.judged.get(&self.kind) {
            _ if state.is_stale() => Some(false),
            None => None,
            Some(judged) => Some(judged.is_ok()),
        }
    }

    /// Has an item whenever something else is known.
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        stream::unfold(self.state.clone(), |mut state| async move { state.changed().await.ok().map(|()| ((), state)) })
    }
}

/// Reads the configuration for one replica.
pub(super) struct Reader {
    pub(super) settings: WebhookSettings,
    pub(super) namespace: String,
    pub(super) client: Client,
    pub(super) kinds: Vec<Checked>,
    pub(super) coverages: Coverages,
    pub(super) status: Status,
    pub(super) metrics: Metrics,
}

impl Reader {
    /// Never returns.
    pub(super) async fn run(self) {
        if self.kinds.is_empty() {
            return std::future::pending().await;
        }
        let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration");
        let configurations: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind));
        let name = &self.settings.name;
        let (mut told, mut complaint) = (Judged::new(), None);
        for kind in &self.kinds {
            self.metrics.set_webhook_guarded(&kind.kind, false);
        }
        loop {
            let wrong = match timeout(LOOK, configurations.get_opt(name)).await {
                Ok(Ok(found)) => {
                    let found = found.map(|found| found.data);
                    let judged = |kind: &Checked| judge(found.as_ref(), name, &self.namespace, kind);
                    self.coverages.read(self.kinds.iter().map(|kind| (kind.kind.clone(), judged(kind))).collect());
                    None
                }
                Ok(Err(error)) => Some(describe(&error)),
                Err(_) => Some("the API server does not answer".to_owned()),
            };
            if let Some(wrong) = &wrong {
                let wrong = format!(
                    "cannot read ValidatingWebhookConfiguration {name}, which the account of the replicas must be allowed \
                     to `get`: {wrong}"
                );
                if complaint.is_none() {
                    warn!("webhooks: {wrong}; what was read last holds for {} s", STALE.as_secs());
                }
                self.coverages.expire(&self.kinds, &wrong);
            }
            complaint = wrong;
            self.tell(&mut told);
            sleep(LOOK).await;
        }
    }

    /// Says what has changed since it was told last: one line for each thing that is true of kinds, whichever they are.
    fn tell(&self, told: &mut Judged) {
        let judged = self.coverages.state.borrow().judged.clone();
        if judged == *told {
            return;
        }
        let mut lines: BTreeMap<&Result<(), String>, Vec<&str>> = BTreeMap::new();
        for (kind, judged) in judged.iter().filter(|(kind, judged)| told.get(*kind) != Some(*judged)) {
            self.metrics.set_webhook_guarded(kind, judged.is_ok());
            lines.entry(judged).or_default().push(kind);
        }
        for (judged, kinds) in lines {
            let kinds = kinds.join(", ");
            match judged {
                Ok(()) => info!("webhooks: the API server asks about every object of {kinds} before it stores one"),
                Err(why) => warn!(
                    "webhooks: the API server may store an object of {kinds} unasked: {why}; until then these kinds are \
                     limited as without webhooks (docs/webhooks.md)"
                ),
            }
        }
        let unguarded =
            judged.iter().filter_map(|(kind, judged)| Some((kind.clone(), judged.clone().err()?))).collect();
        self.status.update_replica(|replica| replica.webhooks.get_or_insert_default().unguarded = unguarded);
        *told = judged;
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how old an answer is, is counted here, and not compared with others' clocks"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::StreamExt as _;
    use serde_json::json;

    use super::*;
    use crate::{
        config::Kind,
        reconcile::fake::{Answer, Fake, refusal},
    };

    fn configuration(policy: &str) -> Answer {
        let client = json!({"service": {"name": "w", "namespace": "n", "path": "/validate"}, "caBundle": "Q0E="});
        let rule = json!({"apiGroups": ["e.com"], "apiVersions": ["*"], "resources": ["as"], "operations": ["*"]});
        let webhook = json!({"name": "it", "clientConfig": client, "rules": [rule], "failurePolicy": policy});
        Some((200, json!({"metadata": {"name": "w"}, "webhooks": [webhook]})))
    }

    struct Stage {
        answer: Arc<Mutex<Answer>>,
        fake: Fake,
        coverages: Coverages,
        status: Status,
        metrics: Metrics,
    }

    fn stage(answer: Answer) -> Stage {
        let answer = Arc::new(Mutex::new(answer));
        let given = Arc::clone(&answer);
        let fake = Fake::new(1, move |_| given.lock().unwrap().clone());
        Stage { answer, fake, coverages: Coverages::default(), status: Status::default(), metrics: Metrics::default() }
    }

    impl Stage {
        fn reader(&self) -> Reader {
            let kind = |kind: &str| Checked::new(&Kind::new("e.com", "v1", kind), format!("{}s", kind.to_lowercase()));
            Reader {
                settings: WebhookSettings { name: "w".to_owned(), ..WebhookSettings::default() },
                namespace: "n".to_owned(),
                client: self.fake.term.client(),
                kinds: vec![kind("A"), kind("B")],
                coverages: self.coverages.clone(),
                status: self.status.clone(),
                metrics: self.metrics.clone(),
            }
        }

        fn answers(&self, answer: Answer) {
            *self.answer.lock().unwrap() = answer;
        }

        fn a(&self) -> Option<bool> {
            self.coverages.of("A.e.com").now()
        }

        fn shows(&self, line: &str) -> bool {
            self.metrics.encode().unwrap().lines().any(|found| found == line)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_configuration_says_is_known_within_one_look_and_shown() {
        let stage = stage(configuration("Fail"));
        let mut changes = Box::pin(stage.coverages.of("A.e.com").changes());
        assert_eq!(stage.a(), None, "nothing is known yet");
        let test = async {
            changes.next().await.unwrap();
            assert_eq!((stage.a(), stage.coverages.of("B.e.com").now()), (Some(true), Some(false)));
            sleep(10 * LOOK).await;
            assert!(stage.fake.asked().len() <= 11, "one request a look");
            assert!(stage.shows("leasehold_webhook_guarded{kind=\"A.e.com\"} 1"));
            assert!(stage.shows("leasehold_webhook_guarded{kind=\"B.e.com\"} 0"));
            let unguarded = stage.status.replica().webhooks.unwrap().unguarded;
            assert_eq!(unguarded.keys().collect::<Vec<_>>(), ["B.e.com"]);

            for answer in [configuration("Ignore"), refusal(404, "NotFound")] {
                stage.answers(answer);
                sleep(2 * LOOK).await;
                assert_eq!(stage.a(), Some(false));
                assert!(stage.shows("leasehold_webhook_guarded{kind=\"A.e.com\"} 0"));
                stage.answers(configuration("Fail"));
                sleep(2 * LOOK).await;
                assert_eq!(stage.a(), Some(true));
            }
        };
        tokio::select! {
            () = stage.reader().run() => {}
            () = test => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_holds_for_a_while_and_then_does_not() {
        for silence in [refusal(403, "Forbidden"), refusal(500, "InternalError"), None] {
            let stage = stage(configuration("Fail"));
            let mut changes = Box::pin(stage.coverages.of("A.e.com").changes());
            let test = async {
                changes.next().await.unwrap();
                stage.answers(silence.clone());
                sleep(STALE - 2 * LOOK).await;
                assert_eq!(stage.a(), Some(true), "{silence:?}");
                changes.next().await.unwrap();
                assert_eq!(stage.a(), Some(false), "{silence:?}");
                sleep(LOOK).await;
                let why = stage.status.replica().webhooks.unwrap().unguarded["A.e.com"].clone();
                assert!(why.contains("cannot read ValidatingWebhookConfiguration w"), "{why}");
                stage.answers(configuration("Fail"));
                changes.next().await.unwrap();
                assert_eq!(stage.a(), Some(true), "{silence:?}");
            };
            tokio::select! {
                () = stage.reader().run() => {}
                () = test => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_nothing_is_read_at_all_the_limits_hold_in_the_end() {
        let coverages = Coverages::default();
        let coverage = coverages.of("A.e.com");
        tokio::time::advance(STALE - Duration::from_millis(1)).await;
        assert_eq!(coverage.now(), None);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(coverage.now(), Some(false));
        coverages.read([("A.e.com".to_owned(), Ok(()))].into());
        assert_eq!(coverage.now(), Some(true));
        // Whatever keeps the reader from reading.
        tokio::time::advance(STALE).await;
        assert_eq!(coverage.now(), Some(false));
        let mut changes = Box::pin(coverage.changes());
        changes.next().await.unwrap();
        coverages.read([("A.e.com".to_owned(), Ok(()))].into());
        changes.next().await.unwrap();
        assert_eq!(coverage.now(), Some(true), "and the objects are looked at again");
    }
}
