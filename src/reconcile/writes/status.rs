//! Writing a status: only when it says something new, and stamped with the term that wrote it.

use std::{fmt::Debug, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Api, Error, Resource, api::PostParams, core::object::HasStatus};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    reconcile::{apply::field_manager, conditions, events::Events, store::Store},
    replica::term::Term,
};

/// The shard that wrote a status last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shard {
    /// Name of its Lease.
    pub lease: String,
    /// The fencing token of its term: uid of the Lease, a slash, `leaseTransitions`.
    /// A later term has a greater number as long as the uid stays the same.
    pub token: String,
}

impl Shard {
    /// The stamp of a term.
    pub fn of(term: &Term) -> Self {
        Self { lease: term.lease().to_owned(), token: term.token().to_string() }
    }
}

/// A status that bears a stamp, and conditions.
pub trait Stamped: Clone + PartialEq {
    /// What it says of the object.
    fn conditions(&self) -> &[Condition];
    /// Where the stamp is.
    fn shard_mut(&mut self) -> &mut Option<Shard>;
}

/// A status with the fields that every kind reports. [`reported!`] implements it.
pub trait Reported: Stamped + Default {
    /// Says of which generation of the spec it is, and what the conditions are.
    fn set(&mut self, observed_generation: Option<i64>, conditions: Vec<Condition>);
}

/// Implements [`Reported`] and [`Stamped`] for a status with the fields `observed_generation: Option<i64>`,
/// `conditions: Vec<Condition>` and `shard: Option<Shard>`.
#[cfg_attr(feature = "internals", macro_export)]
macro_rules! reported {
    ($status:ty) => {
        impl $crate::reconcile::status::Stamped for $status {
            fn conditions(&self) -> &[::k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition] {
                &self.conditions
            }

            fn shard_mut(&mut self) -> &mut Option<$crate::reconcile::status::Shard> {
                &mut self.shard
            }
        }

        impl $crate::reconcile::status::Reported for $status {
            fn set(
                &mut self,
                observed_generation: Option<i64>,
                conditions: Vec<::k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition>,
            ) {
                self.observed_generation = observed_generation;
                self.conditions = conditions;
            }
        }
    };
}

pub(crate) use reported;

/// Whether `next` says anything that `current` does not. The stamp alone is no news: otherwise each take-over would write every status.
pub fn changed<S: Stamped>(current: Option<&S>, next: &S) -> bool {
    current.is_none_or(|current| {
        let (mut current, mut next) = (current.clone(), next.clone());
        *current.shard_mut() = None;
        *next.shard_mut() = None;
        current != next
    })
}

/// The most often that a status is computed anew because another writer changed the object in between.
const ATTEMPTS: u32 = 4;

/// Why no status of a kind can be written.
const NO_SUBRESOURCE: &str =
    "the CRD serves no status of its own: add `subresources: {status: {}}` to the version of the kind";

/// Writes the statuses of the objects of a kind during one term.
pub struct Statuses<K: Resource> {
    term: Term,
    events: Arc<Events>,
    store: Store<K>,
}

impl<K> Statuses<K>
where
    K: Resource + HasStatus + Clone + Serialize + DeserializeOwned + Debug,
    K::Status: Stamped,
{
    /// Through the term's client; what is written is seen at once.
    pub fn new(term: Term, events: Arc<Events>, store: Store<K>) -> Self {
        Self { term, events, store }
    }

    /// Writes the status that `next` makes of the current one, if it is news, and says so if it is bad news.
    ///
    /// # Errors
    /// What the API server answers, or that the term is over. `Service`: the CRD serves no status of its own.
    pub async fn write(
        &self,
        api: &Api<K>,
        object: &K,
        next: impl Fn(Option<&K::Status>) -> K::Status,
    ) -> Result<(), Error> {
        self.write_and_see(api, object, |current| Some(next(current))).await.map(drop)
    }

    /// As [`write`](Self::write), if `next` makes anything of the current one. The status that the API
    /// server has stored, if one was written.
    pub(in crate::reconcile) async fn write_and_see(
        &self,
        api: &Api<K>,
        object: &K,
        next: impl Fn(Option<&K::Status>) -> Option<K::Status>,
    ) -> Result<Option<Option<K::Status>>, Error> {
        let next = |object: &K| next(object.status());
        let Some(written) = write(&self.term, &self.store, api, object, next).await? else {
            return Ok(None);
        };
        let about = written.object_ref(self.store.dyntype());
        let stored = written.status().cloned();
        let bad = stored.as_ref().and_then(|status| conditions::not_ready(status.conditions())).cloned();
        self.store.note(written);
        // `Unknown` is no trouble yet, so it makes no event.
        if let Some(bad) = bad.filter(|bad| bad.status == "False") {
            self.events.warning(&about, &bad.reason, &bad.message);
        }
        Ok(Some(stored))
    }
}

/// Writes the status that `next` makes of the object, if that changes anything. Returns what the write has left.
///
/// `object` may be old, so the write is made from the newest version that the store has and bears its resourceVersion. When
/// the API server refuses that, `next` is asked again with what the watch has brought since, or else with what is read. So
/// `next` may count on from the status that it is given.
pub(in crate::reconcile) async fn write<K>(
    term: &Term,
    store: &Store<K>,
    api: &Api<K>,
    object: &K,
    next: impl Fn(&K) -> Option<K::Status>,
) -> Result<Option<K>, Error>
where
    K: Resource + HasStatus + Clone + Serialize + DeserializeOwned + Debug,
    K::Status: Stamped,
{
    let name = object.meta().name.clone().unwrap_or_default();
    let params = PostParams { field_manager: Some(field_manager(&term.kind().kind)), ..PostParams::default() };
    let mut object = store.newer(object).map_or_else(|| object.clone(), Arc::unwrap_or_clone);
    for attempt in 1.. {
        let Some(mut status) = next(&object) else { return Ok(None) };
        if !changed(object.status(), &status) {
            return Ok(None);
        }
        *status.shard_mut() = Some(Shard::of(term));
        *object.status_mut() = Some(status);
        match api.replace_status(&name, &params, &object).await {
            Ok(written) => return Ok(Some(written)),
            Err(Error::Api(refused)) if refused.is_conflict() && attempt < ATTEMPTS => {
                if let Some(newer) = store.newer(&object) {
                    object = Arc::unwrap_or_clone(newer);
                    continue;
                }
                let Some(fresh) = api.get_opt(&name).await? else { return Ok(None) };
                if fresh.meta().uid != object.meta().uid {
                    return Ok(None);
                }
                object = fresh;
            }
            Err(Error::Api(gone)) if gone.code == 404 => {
                // The API server says the same of an object that is gone and of a status that is no subresource.
                let found = api.get_opt(&name).await?;
                let is_there = found.is_some_and(|found| found.meta().uid == object.meta().uid);
                return if is_there { Err(Error::Service(NO_SUBRESOURCE.into())) } else { Ok(None) };
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        kinds::propagation::{Propagation, PropagationStatus},
        reconcile::fake::{Answer, Asked, Fake, refusal},
    };

    fn object(version: &str, uid: &str, synced: i32) -> Value {
        json!({
            "apiVersion": "leasehold.dev/v1alpha1", "kind": "Propagation",
            "metadata": {"name": "p", "uid": uid, "resourceVersion": version},
            "spec": {
                "source": {"kind": "ConfigMap", "namespace": "home", "name": "settings"},
                "targets": {"namespaces": ["a"]},
            },
            "status": {"targets": 5, "synced": synced, "shard": {"lease": "x", "token": "lease-uid/1"}},
        })
    }

    /// Adds one to `synced` if it is less than `until`.
    fn count(until: i32) -> impl Fn(Option<&PropagationStatus>) -> PropagationStatus {
        move |current| {
            let mut next = current.cloned().unwrap_or_default();
            next.synced = until.min(next.synced + 1);
            next
        }
    }

    async fn written(
        until: i32,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> (Result<Option<Propagation>, Error>, Vec<Asked>) {
        written_beside(&Store::new(()), until, answer).await
    }

    /// The pass has begun with version 10; the store may have come to know a later one.
    async fn written_beside(
        store: &Store<Propagation>,
        until: i32,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> (Result<Option<Propagation>, Error>, Vec<Asked>) {
        let fake = Fake::new(2, answer);
        let api = Api::<Propagation>::all(fake.term.client());
        let begun_with = serde_json::from_value(object("10", "u", 3)).unwrap();
        let next = count(until);
        let result = write(&fake.term, store, &api, &begun_with, |object| Some(next(object.status()))).await;
        (result, fake.asked())
    }

    fn tell(store: &Store<Propagation>, version: &str, uid: &str, synced: i32) {
        store.take_in(Event::Apply(serde_json::from_value(object(version, uid, synced)).unwrap()));
    }

    #[tokio::test]
    async fn a_later_term_with_nothing_new_to_say_asks_for_nothing() {
        let (result, asked) = written(3, |_| panic!("no request is needed")).await;
        assert!(result.unwrap().is_none());
        assert_eq!(asked, []);
    }

    #[tokio::test]
    async fn news_is_written_once_over_the_version_it_was_made_from_and_bears_the_term() {
        let (result, asked) = written(4, |asked| Some((200, asked.body.clone()))).await;
        assert!(result.unwrap().is_some());
        let [put] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(put.method, Method::PUT);
        assert!(put.uri.contains("/propagations/p/status?"), "{}", put.uri);
        assert_eq!(put.body["metadata"]["resourceVersion"], "10");
        let expected = json!({
            "targets": 5, "synced": 4,
            "shard": {"lease": "propagation.leasehold.dev", "token": "lease-uid/2"},
        });
        assert_eq!(put.body["status"], expected);
    }

    #[tokio::test]
    async fn a_stale_object_is_read_again_and_counted_on_from() {
        let answer = |asked: &Asked| match (asked.method == Method::GET, &asked.body["metadata"]["resourceVersion"]) {
            (true, _) => Some((200, object("11", "u", 7))),
            (false, version) if version == "11" => Some((200, asked.body.clone())),
            _ => refusal(409, "Conflict"),
        };
        let (result, asked) = written(100, answer).await;
        assert!(result.unwrap().is_some());
        let methods: Vec<_> = asked.iter().map(|asked| asked.method.as_str()).collect();
        assert_eq!(methods, ["PUT", "GET", "PUT"]);
        assert_eq!(asked[2].body["status"]["synced"], 8);
    }

    #[tokio::test]
    async fn a_status_is_made_from_what_the_watch_has_told_since_the_pass_began() {
        for (version, uid, expected) in [("12", "u", ("12", 8)), ("9", "u", ("10", 4)), ("12", "another", ("10", 4))] {
            let store = Store::new(());
            tell(&store, version, uid, 7);
            let (result, asked) = written_beside(&store, 100, |asked| Some((200, asked.body.clone()))).await;
            assert!(result.unwrap().is_some());
            let [put] = &asked[..] else { panic!("{asked:?}") };
            let (version, synced) = expected;
            assert_eq!(put.body["metadata"]["resourceVersion"], version);
            assert_eq!(put.body["status"]["synced"], synced);
        }
    }

    #[tokio::test]
    async fn nothing_is_read_if_the_watch_tells_why_a_write_was_refused() {
        let store = Store::new(());
        let told = store.clone();
        let answer = move |asked: &Asked| match &asked.body["metadata"]["resourceVersion"] {
            version if version == "12" => Some((200, asked.body.clone())),
            _ => {
                tell(&told, "12", "u", 7);
                refusal(409, "Conflict")
            }
        };
        let (result, asked) = written_beside(&store, 100, answer).await;
        assert!(result.unwrap().is_some());
        let synced: Vec<_> =
            asked.iter().map(|asked| (asked.method.as_str(), &asked.body["status"]["synced"])).collect();
        assert_eq!(synced, [("PUT", &json!(4)), ("PUT", &json!(8))]);
    }

    #[tokio::test]
    async fn what_the_fresh_object_says_already_is_not_written() {
        let answer = |asked: &Asked| match asked.method {
            Method::GET => Some((200, object("11", "u", 4))),
            _ => refusal(409, "Conflict"),
        };
        let (result, asked) = written(4, answer).await;
        assert!(result.unwrap().is_none());
        assert_eq!(asked.len(), 2);
    }

    #[tokio::test]
    async fn another_object_of_that_name_gets_nothing() {
        let answer = |asked: &Asked| match asked.method {
            Method::GET => Some((200, object("11", "another", 0))),
            _ => refusal(409, "Conflict"),
        };
        let (result, asked) = written(100, answer).await;
        assert!(result.unwrap().is_none());
        assert_eq!(asked.len(), 2);
    }

    #[tokio::test]
    async fn a_status_that_is_no_subresource_is_an_error_and_that_of_an_object_that_is_gone_is_none() {
        for (is_there, uid, is_error) in [(true, "u", true), (true, "another", false), (false, "u", false)] {
            let answer = move |asked: &Asked| match asked.method {
                Method::GET if is_there => Some((200, object("10", uid, 3))),
                _ => refusal(404, "NotFound"),
            };
            let (result, asked) = written(4, answer).await;
            assert_eq!(result.is_err(), is_error, "{is_there} {uid}");
            assert_eq!(asked.len(), 2);
            if let Err(error) = result {
                assert!(error.to_string().contains("subresources: {status: {}}"), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn it_gives_up_when_every_version_is_stale() {
        let answer = |asked: &Asked| match asked.method {
            Method::GET => Some((200, object("11", "u", 0))),
            _ => refusal(409, "Conflict"),
        };
        let (result, asked) = written(100, answer).await;
        assert!(matches!(result, Err(Error::Api(status)) if status.is_conflict()));
        assert_eq!(asked.iter().filter(|asked| asked.method == Method::PUT).count(), 4);
    }
}
