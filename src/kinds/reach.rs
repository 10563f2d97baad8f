//! How far the objects of a kind may reach, whatever its account is allowed. Pure.
//!
//! Where webhooks are served, they ask what the author of an object may do, and this is about the replicas' own namespaces
//! only. Where none are, the rights of authors are not checked: then objects act on the types that the configuration lists, overwrite
//! nothing, and leave the namespaces of the system alone.

use std::collections::BTreeSet;

use crate::config::{Configuration, Escalation, GroupKind, Kind, WithoutWebhooks};

/// The reason of the condition `SpecValid` of an object that would reach further.
pub const OUT_OF_REACH: &str = "OutOfReach";

/// Namespaces of the system begin with this.
const SYSTEM: &str = "kube-";

/// How far the objects of one kind may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Where the replicas and their Leases are.
    own: BTreeSet<String>,
    limits: Option<Limits>,
}

/// What holds where no webhook asks what the author of an object may do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limits {
    types: Vec<GroupKind>,
    kind: String,
}

impl Default for Reach {
    /// That of a configuration that says nothing: no webhooks are served.
    fn default() -> Self {
        Self {
            own: BTreeSet::new(),
            limits: Some(Limits { types: WithoutWebhooks::default().types, kind: "it".into() }),
        }
    }
}

impl Reach {
    /// Of a kind's objects, where webhooks are served or not; `namespace` is that of the replicas.
    pub fn of(kind: &Kind, config: &Configuration, webhooks: bool, namespace: &str) -> Self {
        let own = [Some(namespace.to_owned()), config.lease_namespace.clone()].into_iter().flatten().collect();
        let limits = Limits { types: config.without_webhooks.types.clone(), kind: kind.name() };
        let is_limited = !webhooks && kind.escalation == Escalation::Check;
        Self { own, limits: is_limited.then_some(limits) }
    }

    /// Whether a type may be acted on.
    ///
    /// # Errors
    /// Why not, and what to do; the text follows the name of a field.
    pub(super) fn of_type(&self, group: &str, kind: &str) -> Result<(), String> {
        let Some(limits) = &self.limits else { return Ok(()) };
        if limits.types.iter().any(|of| of.group == group && of.kind == kind) {
            return Ok(());
        }
        let named = GroupKind { group: group.to_owned(), kind: kind.to_owned() };
        let known: Vec<_> = limits.types.iter().map(ToString::to_string).collect();
        let known =
            if known.is_empty() { "which lists none".to_owned() } else { format!("which lists {}", known.join(", ")) };
        Err(format!(
            "no webhooks are served here, and {named} is not in withoutWebhooks.types of the configuration, {known}: ask the \
             platform to serve webhooks (docs/webhooks.md), or to list the type"
        ))
    }

    /// Whether there may be a target in a namespace.
    ///
    /// # Errors
    /// As [`of_type`](Self::of_type).
    pub(super) fn namespace(&self, name: &str) -> Result<(), String> {
        if self.own.contains(name) {
            return Err(format!(
                "{name} is the namespace of the replicas or of their Leases, which no object reaches: choose another one"
            ));
        }
        match &self.limits {
            Some(limits) if name.starts_with(SYSTEM) => Err(format!(
                "no webhooks are served here, and {name} is a namespace of the system: choose another one, or ask the platform to {}",
                limits.remedy()
            )),
            _ => Ok(()),
        }
    }

    /// Whether an object that is not ours may be taken.
    ///
    /// # Errors
    /// As [`of_type`](Self::of_type).
    pub(super) fn overwriting(&self) -> Result<(), String> {
        self.limits.as_ref().map_or(Ok(()), |limits| {
            Err(format!("no webhooks are served here: write Skip, or ask the platform to {}", limits.remedy()))
        })
    }
}

impl Limits {
    /// What the platform can do about it.
    fn remedy(&self) -> String {
        format!(
            "serve webhooks (docs/webhooks.md), or to set `escalation: Trust` for {} if its authors may do all that its account may",
            self.kind
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Configuration {
        let text = format!(
            "apiVersion: leasehold.dev/v1alpha1\nkind: Configuration\nleases: {{namespace: leases}}\nkinds:\n\
             - {{apiVersion: e.com/v1, kind: W, reconciler: {{builtin: x}}{text}"
        );
        crate::config::load("f.yaml", &text, &["x"]).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn reach(text: &str, webhooks: bool) -> Reach {
        let config = config(text);
        Reach::of(&config.kinds[0], &config, webhooks, "replicas")
    }

    #[test]
    fn without_webhooks_the_types_of_the_configuration_are_reached_and_no_others() {
        for (text, of, reached) in [
            ("}", ("", "ConfigMap"), true),
            ("}", ("", "Pod"), true),
            ("}", ("batch", "Job"), true),
            ("}", ("", "Secret"), false),
            ("}", ("", "Job"), false),
            ("}", ("apps", "Deployment"), false),
            ("}\nwithoutWebhooks: {types: [Secret, Widget.e.com]}", ("", "Secret"), true),
            ("}\nwithoutWebhooks: {types: [Secret, Widget.e.com]}", ("e.com", "Widget"), true),
            ("}\nwithoutWebhooks: {types: [Secret, Widget.e.com]}", ("", "ConfigMap"), false),
            ("}\nwithoutWebhooks: {types: []}", ("", "Pod"), false),
            (", escalation: Trust}", ("", "Secret"), true),
        ] {
            assert_eq!(reach(text, false).of_type(of.0, of.1).is_ok(), reached, "{text} {of:?}");
            assert!(reach(text, true).of_type(of.0, of.1).is_ok(), "{text} {of:?}");
        }
        let wrong = reach("}", false).of_type("apps", "Deployment").unwrap_err();
        assert_eq!(
            wrong,
            "no webhooks are served here, and Deployment.apps is not in withoutWebhooks.types of the configuration, which \
             lists Job.batch, Pod, ConfigMap: ask the platform to serve webhooks (docs/webhooks.md), or to list the type"
        );
    }

    #[test]
    fn no_object_reaches_the_replicas_and_without_webhooks_none_the_system() {
        for (text, webhooks, system) in [("}", false, false), ("}", true, true), (", escalation: Trust}", false, true)]
        {
            let reach = reach(text, webhooks);
            assert!(reach.namespace("replicas").is_err() && reach.namespace("leases").is_err(), "{text} {webhooks}");
            for name in ["kube-system", "kube-public", "kube-node-lease"] {
                assert_eq!(reach.namespace(name).is_ok(), system, "{text} {webhooks} {name}");
            }
            assert!(reach.namespace("kubeflow").is_ok() && reach.namespace("default").is_ok());
            assert_eq!(reach.overwriting().is_ok(), system);
        }
        let wrong = reach("}", false).overwriting().unwrap_err();
        assert!(wrong.contains("write Skip") && wrong.contains("`escalation: Trust` for W.e.com"), "{wrong}");
    }

    #[test]
    fn what_says_nothing_reaches_as_without_webhooks() {
        let reach = Reach::default();
        assert!(reach.of_type("", "Secret").is_err() && reach.of_type("", "Pod").is_ok());
        assert!(reach.namespace("kube-system").is_err() && reach.overwriting().is_err());
    }
}
