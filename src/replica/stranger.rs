//! Says on a Lease that a stranger holds it, for `kubectl describe` and for programs that collect events.

use std::future::Future;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::debug;

use super::{problem::describe, telemetry::of_stranger};

/// Writes the event. Each replica says it once for a holder; without the permission the log alone has it.
pub(super) fn report(
    client: Client,
    identity: &str,
    namespace: &str,
    lease: &str,
    holder: &str,
) -> impl Future<Output = ()> + Send + 'static {
    let reporter = Reporter { controller: "leasehold".to_owned(), instance: Some(identity.to_owned()) };
    let about = ObjectReference {
        api_version: Some("coordination.k8s.io/v1".to_owned()),
        kind: Some("Lease".to_owned()),
        name: Some(lease.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: "ForeignHolder".to_owned(),
        note: Some(of_stranger(holder, namespace, lease)),
        action: "Elect".to_owned(),
        secondary: None,
    };
    async move {
        if let Err(error) = Recorder::new(client, reporter).publish(&event, &about).await {
            debug!("no event tells of the foreign holder: {}", describe(&error));
        }
    }
}
