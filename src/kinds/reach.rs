//! How far the objects of a kind may reach, whatever its account is allowed. Pure.
//!
//! Where the API server asks our webhooks, these ask what the author of an object may do, and this is about the replicas' own
//! namespaces only. Where it does not, the rights of authors are not checked: then objects act on the types that the configuration
//! lists, overwrite nothing, and leave the namespaces of the system alone.

use std::collections::BTreeSet;

use crate::config::{Configuration, Escalation, GroupKind, Kind, WithoutWebhooks};

/// The reason of the condition `SpecValid` of an object that would reach further.
pub const OUT_OF_REACH: &str = "OutOfReach";

/// Namespaces of the system begin with this.
pub const SYSTEM: &str = "kube-";

/// Whether the author of an object was asked about before the object was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authors {
    /// The API server asks the webhooks about every object of the kind.
    Asked,
    /// Webhooks are served, and the API server may store an object without asking them.
    Unasked,
    /// No webhooks are served.
    #[default]
    Unserved,
}

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
    authors: Authors,
}

impl Default for Reach {
    /// That of a configuration that says nothing: no webhooks are served.
    fn default() -> Self {
        Self {
            own: BTreeSet::new(),
            limits: Some(Limits {
                types: WithoutWebhooks::default().types,
                kind: "it".into(),
                authors: Authors::Unserved,
            }),
        }
    }
}

impl Reach {
    /// Of a kind's objects, whose authors are asked about or not; `namespace` is that of the replicas.
    pub fn of(kind: &Kind, config: &Configuration, authors: Authors, namespace: &str) -> Self {
        let own = [Some(namespace.to_owned()), config.lease_namespace.clone()].into_iter().flatten().collect();
        let limits = Limits { types: config.without_webhooks.types.clone(), kind: kind.name(), authors };
        let is_limited = authors != Authors::Asked && kind.escalation == Escalation::Check;
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
            "{}, and {named} is not in withoutWebhooks.types of the configuration, {known}: ask the platform to {}, or to list \
             the type",
            limits.cause(),
            limits.guard()
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
                "{}, and {name} is a namespace of the system: choose another one, or ask the platform to {}",
                limits.cause(),
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
            Err(format!("{}: write Skip, or ask the platform to {}", limits.cause(), limits.remedy()))
        })
    }
}

impl Limits {
    /// Why authors are not asked about.
    fn cause(&self) -> &'static str {
        match self.authors {
            Authors::Asked | Authors::Unserved => "no webhooks are served here",
            Authors::Unasked => "the API server does not ask the webhooks about every object of this kind",
        }
    }

    /// What has them asked about.
    fn guard(&self) -> &'static str {
        match self.authors {
            Authors::Asked | Authors::Unserved => "serve webhooks (docs/webhooks.md)",
            Authors::Unasked => "apply the configurations of the webhooks (docs/webhooks.md)",
        }
    }

    /// What the platform can do about it.
    fn remedy(&self) -> String {
        format!(
            "{}, or to set `escalation: Trust` for {} if its authors may do all that its account may",
            self.guard(),
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
        Reach::of(&config.kinds[0], &config, if webhooks { Authors::Asked } else { Authors::Unserved }, "replicas")
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
    fn what_the_api_server_may_store_unasked_is_limited_as_without_webhooks_and_says_so() {
        for (text, limited) in [("}", true), (", escalation: Trust}", false)] {
            let config = config(text);
            let reach = Reach::of(&config.kinds[0], &config, Authors::Unasked, "replicas");
            assert_eq!(reach.of_type("", "Secret").is_err(), limited);
            assert_eq!(reach.namespace("kube-system").is_err(), limited);
            assert_eq!(reach.overwriting().is_err(), limited);
            assert!(reach.namespace("replicas").is_err() && reach.of_type("", "Pod").is_ok());
            let wrong = reach.overwriting().err().unwrap_or_default();
            let says = "the API server does not ask the webhooks about every object of this kind: write Skip, or ask the platform \
                        to apply the configurations of the webhooks (docs/webhooks.md), or to set `escalation: Trust`";
            assert!(!limited || wrong.starts_with(says), "{wrong}");
        }
    }

    #[test]
    fn what_says_nothing_reaches_as_without_webhooks() {
        let reach = Reach::default();
        assert!(reach.of_type("", "Secret").is_err() && reach.of_type("", "Pod").is_ok());
        assert!(reach.namespace("kube-system").is_err() && reach.overwriting().is_err());
    }
}
