//! The webhook of a kind whose objects give their authors no more rights than they have: it asks whether the author may do
//! what the object would have the kind do. A kind's own webhook goes before it.
//!
//! Asked are creations and what changes what is done: a change of the spec, or of what a composition sees besides.
//! So writes of status and finalizers pass, a deletion asks nothing, and what was stored before can be reconciled and go.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt as _, future::BoxFuture};
use kube::core::admission::Operation;
use serde_json::{Value, json};

use super::{actions::Acts, reach::Reach};
use crate::webhooks::{
    Asked, Denied, Webhook,
    action::{Action, refusal},
    ask::{Asker, Resources, in_time},
};

#[cfg(test)]
mod tests;

/// Asks for the author of an object what the object would have its kind do.
pub struct Guard {
    kind: String,
    acts: Acts,
    reach: Reach,
    asker: Asker,
    inner: Option<Arc<dyn Webhook>>,
}

impl Guard {
    /// Of the kind `<Kind>.<group>`. `inner` is the kind's own webhook.
    pub fn new(kind: String, acts: Acts, reach: Reach, asker: Asker, inner: Option<Arc<dyn Webhook>>) -> Self {
        Self { kind, acts, reach, asker, inner }
    }

    async fn judge(&self, asked: &Asked<'_>) -> Result<(), Denied> {
        let Some(object) = asked.request.object.as_ref().filter(|_| asked.request.operation != Operation::Delete)
        else {
            return Ok(());
        };
        let object = json!(object);
        let before = asked.request.old_object.as_ref().map(|old| json!(old));
        let before = before.filter(|_| asked.request.operation == Operation::Update);
        let same_spec = before.as_ref().is_some_and(|before| before.get("spec") == object.get("spec"));
        // Only a composition sees more of an object than its spec.
        if same_spec && !matches!(self.acts, Acts::Composed(_)) {
            return Ok(());
        }
        let types = self.acts.types(&object).map_err(invalid)?;
        let resources = self.asker.resources(asked.client, types).await?;
        let actions = match before.filter(|_| same_spec) {
            None => self.actions(&object, &resources).map_err(invalid)?,
            Some(before) => self.more(&object, &before, &resources),
        };
        if actions.is_empty() {
            return Ok(());
        }
        let user = &asked.request.user_info;
        let name = user.username.as_deref().filter(|name| !name.is_empty());
        let name =
            name.ok_or_else(|| Denied::unknown("the request does not say who makes it, so no rights can be checked"))?;
        let missing = self.asker.missing(asked.client, user, actions).await?;
        if missing.is_empty() { Ok(()) } else { Err(Denied::new(refusal(name, &self.kind, &missing))) }
    }

    fn actions(&self, object: &Value, resources: &Resources) -> Result<BTreeSet<Action>, String> {
        self.acts.actions(object, &self.reach, resources)
    }

    /// What an object has the kind do that it did not before. One that cannot be carried out has it do nothing.
    fn more(&self, object: &Value, before: &Value, resources: &Resources) -> BTreeSet<Action> {
        let before = self.actions(before, resources).unwrap_or_default();
        self.actions(object, resources).unwrap_or_default().difference(&before).cloned().collect()
    }
}

fn invalid(message: String) -> Denied {
    Denied { message, code: 422 }
}

impl Webhook for Guard {
    fn default<'a>(&'a self, asked: &'a Asked<'_>, object: &'a mut Value) -> BoxFuture<'a, Result<(), Denied>> {
        match &self.inner {
            Some(inner) => inner.default(asked, object),
            None => async { Ok(()) }.boxed(),
        }
    }

    fn validate<'a>(&'a self, asked: &'a Asked<'_>) -> BoxFuture<'a, Result<Vec<String>, Denied>> {
        async move {
            let warnings = match &self.inner {
                Some(inner) => inner.validate(asked).await?,
                None => Vec::new(),
            };
            in_time(self.judge(asked)).await?;
            Ok(warnings)
        }
        .boxed()
    }

    fn convert(&self, object: Value, from: &str, to: &str) -> Result<Value, String> {
        match &self.inner {
            Some(inner) => inner.convert(object, from, to),
            None => Err(format!("there is no conversion from {from} to {to}")),
        }
    }

    fn converts(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.converts())
    }
}
