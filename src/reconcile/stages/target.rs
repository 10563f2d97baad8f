//! The type that an object names as its target.

use kube::{
    Client, Error,
    core::{ApiResource, GroupVersionKind},
    discovery::{self, ApiCapabilities},
};

use super::Trouble;
use crate::replica::problem::is_unserved;

/// Finds the resource of a type that an object names, or says that the API server does not serve it. Ask in each pass:
/// a type may come, go, or get another plural.
///
/// # Errors
/// If the API server could not be asked.
pub async fn discover(
    client: &Client,
    of: &GroupVersionKind,
) -> Result<Result<(ApiResource, ApiCapabilities), Trouble>, Error> {
    match discovery::pinned_kind(client, of).await {
        Ok(found) => Ok(Ok(found)),
        Err(error) if is_unserved(&error) => {
            let message = format!("the API server does not serve {} {}", of.api_version(), of.kind);
            Ok(Err(Trouble::new("TargetUnknown", message)))
        }
        Err(error) => Err(error),
    }
}
