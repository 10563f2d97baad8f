//! The events of a query, as long as the API server serves its type. A type whose CRD is removed is discovered again.

use std::time::Duration;

use futures::{StreamExt, stream, stream::BoxStream};
use kube::{
    Api, Client,
    core::ApiResource,
    discovery::{self, Scope},
    runtime::{WatchStreamExt, watcher},
};
use tracing::warn;

use super::Query;
use crate::{
    reconcile::raw::Raw,
    replica::{
        connections::WATCH_TIMEOUT,
        problem::{describe, is_unserved},
    },
};

/// Between two looks whether a type is served.
const UNSERVED: Duration = Duration::from_secs(10);

/// An event of a watch.
#[expect(clippy::large_enum_variant, reason = "almost all are of the largest variant, and none is kept")]
pub(super) enum SourceEvent {
    Served(ApiResource, Scope),
    Unserved,
    Trouble(String),
    Watched(watcher::Event<Raw>),
}

/// Discovers the type, after that time, until the API server serves it; then watches.
pub(super) fn events(client: Client, query: Query, after: Duration) -> BoxStream<'static, SourceEvent> {
    let find = stream::unfold((client, query), |(client, query)| async move {
        match discovery::pinned_kind(&client, &query.of.gvk()).await {
            Ok((resource, capabilities)) => {
                let api: Api<Raw> = match &query.namespace {
                    Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                    None => Api::all_with(client.clone(), &resource),
                };
                let config = watcher::Config {
                    label_selector: some(&query.labels),
                    field_selector: some(&query.fields),
                    ..watcher::Config::default().timeout(WATCH_TIMEOUT)
                };
                let watched = watcher(api, config).default_backoff().flat_map({
                    let name = query.to_string();
                    move |item| match item {
                        Ok(event) => stream::iter(vec![Some(SourceEvent::Watched(event))]),
                        Err(error) => {
                            let why = describe(&error);
                            warn!(watch = name, error = why, "watch failed");
                            let mut events = vec![Some(SourceEvent::Trouble(why))];
                            // Then the type is looked for, as in the beginning.
                            events.extend(is_gone(&error).then_some(None));
                            stream::iter(events)
                        }
                    }
                });
                let watched = watched.take_while(|event| std::future::ready(event.is_some()));
                let watched = watched.filter_map(std::future::ready);
                let served = stream::iter([SourceEvent::Served(resource, capabilities.scope)]);
                Some((served.chain(watched).boxed(), (client, query)))
            }
            Err(error) => {
                let event = if is_unserved(&error) {
                    SourceEvent::Unserved
                } else {
                    SourceEvent::Trouble(format!("failed to discover {}: {}", query.of, describe(&error)))
                };
                let pause = tokio::time::sleep(UNSERVED.mul_f64(0.8 + 0.4 * fastrand::f64()));
                let waiting = stream::once(pause).filter_map(|()| std::future::ready(None));
                Some((stream::iter([event]).chain(waiting).boxed(), (client, query)))
            }
        }
    });
    if after.is_zero() {
        return find.flatten().boxed();
    }
    let pause = stream::once(tokio::time::sleep(after)).filter_map(|()| std::future::ready(None));
    pause.chain(find.flatten()).boxed()
}

/// Whether the API server does not know the resource any more.
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => is_unserved(error),
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
