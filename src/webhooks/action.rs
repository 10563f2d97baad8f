//! What an object would have its kind do, as the permissions that this takes, and how a refusal names them. Pure.

use std::{collections::BTreeMap, fmt};

/// How many of the missing permissions a refusal names.
const NAMED: usize = 5;

/// The order in which people write verbs.
const VERBS: [&str; 9] = ["get", "list", "watch", "create", "update", "patch", "delete", "bind", "escalate"];

/// One verb on objects of a type, as RBAC knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Action {
    /// Where.
    pub place: Place,
    /// API group; empty for the core group.
    pub group: String,
    /// Version within the group.
    pub version: String,
    /// Resource in the plural.
    pub resource: String,
    /// Part of it, such as `scale`.
    pub subresource: Option<&'static str>,
    /// The only object; `None`: any.
    pub name: Option<String>,
    /// Verb.
    pub verb: &'static str,
}

/// Where something is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// To objects that are in no namespace.
    Cluster,
    /// In any namespace.
    Anywhere,
    /// In this one.
    Namespace(String),
}

impl Action {
    /// The same in any namespace.
    pub(super) fn anywhere(&self) -> Self {
        Self { place: Place::Anywhere, ..self.clone() }
    }
}

/// Why the author of an object is refused: what is missing, in which rule of which role, and who else can help.
/// `kind` is `<Kind>.<group>`. There is at least one action.
pub fn refusal(user: &str, kind: &str, missing: &[Action]) -> String {
    let mut rules = BTreeMap::<_, Vec<&'static str>>::new();
    for Action { place, group, version: _, resource, subresource, name, verb } in missing {
        let resource = subresource.map_or_else(|| resource.clone(), |part| format!("{resource}/{part}"));
        rules.entry((place, group, resource, name)).or_default().push(verb);
    }
    for verbs in rules.values_mut() {
        verbs.sort_by_key(|verb| VERBS.iter().position(|known| known == verb));
    }
    let count = rules.len();
    let said = rules.into_iter().take(NAMED).map(|((place, group, resource, name), verbs)| Rule {
        place,
        group,
        resource,
        name,
        verbs,
    });
    let said: Vec<_> = said.collect();
    let mut text = format!("user {user} may not ");
    for (index, rule) in said.iter().enumerate() {
        text += &format!("{}{rule}", if index == 0 { "" } else { "; " });
    }
    if count > said.len() {
        text += &format!("; and {} more", count - said.len());
    }
    let in_one = missing.iter().all(|action| matches!(action.place, Place::Namespace(_)));
    let role = if in_one { "a Role there" } else { "a ClusterRole" };
    let rules = if count > 1 { "rules such as" } else { "the rule" };
    let example = said.first().map(Rule::yaml).unwrap_or_default();
    text + &format!(
        ", which this object would have {kind} do: ask for {role} with {rules} {example}, or ask the platform to set \
         `escalation: Trust` for {kind} in the configuration of leasehold"
    )
}

/// Verbs on one resource in one place.
struct Rule<'a> {
    place: &'a Place,
    group: &'a str,
    resource: String,
    name: &'a Option<String>,
    verbs: Vec<&'static str>,
}

impl Rule<'_> {
    /// As the rule of a role has it.
    fn yaml(&self) -> String {
        let group = if self.group.is_empty() { "\"\"" } else { self.group };
        let name = self.name.as_ref().map_or_else(String::new, |name| format!(", resourceNames: [{name}]"));
        format!("{{apiGroups: [{group}], resources: [{}], verbs: [{}]{name}}}", self.resource, self.verbs.join(", "))
    }
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verbs.join(", "), self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if let Some(name) = self.name {
            write!(f, " {name}")?;
        }
        match self.place {
            Place::Cluster => Ok(()),
            Place::Anywhere => f.write_str(" in all namespaces"),
            Place::Namespace(namespace) => write!(f, " in namespace {namespace}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(verb: &'static str, group: &str, resource: &str, place: Place) -> Action {
        let (group, resource) = (group.to_owned(), resource.to_owned());
        Action { place, group, version: "v1".to_owned(), resource, subresource: None, name: None, verb }
    }

    #[test]
    fn a_refusal_names_user_verbs_resource_and_namespace_and_says_what_to_do() {
        let shop = || Place::Namespace("shop".to_owned());
        let missing = [action("delete", "", "secrets", shop()), action("list", "", "secrets", shop())];
        assert_eq!(
            refusal("jane", "ExpiryPolicy.leasehold.dev", &missing),
            "user jane may not list, delete secrets in namespace shop, which this object would have ExpiryPolicy.leasehold.dev \
             do: ask for a Role there with the rule {apiGroups: [\"\"], resources: [secrets], verbs: [list, delete]}, or ask the \
             platform to set `escalation: Trust` for ExpiryPolicy.leasehold.dev in the configuration of leasehold"
        );
        let scale = Action {
            subresource: Some("scale"),
            name: Some("web".to_owned()),
            ..action("patch", "apps", "deployments", shop())
        };
        let said = refusal("jane", "ScaleSchedule.leasehold.dev", &[scale]);
        assert!(said.starts_with("user jane may not patch deployments/scale.apps web in namespace shop, "), "{said}");
        assert!(
            said.contains("{apiGroups: [apps], resources: [deployments/scale], verbs: [patch], resourceNames: [web]}"),
            "{said}"
        );
        let said = refusal(
            "jane",
            "K",
            &[action("create", "", "namespaces", Place::Cluster), action("create", "", "secrets", Place::Anywhere)],
        );
        assert!(
            said.starts_with("user jane may not create namespaces; create secrets in all namespaces, which"),
            "{said}"
        );
        assert!(said.contains("a ClusterRole with rules such as {"), "{said}");
    }

    #[test]
    fn a_refusal_stays_short() {
        let many: Vec<_> =
            (0..1000).map(|it| action("delete", "", "pods", Place::Namespace(format!("n{it}")))).collect();
        let said = refusal("jane", "K", &many);
        assert!(said.len() < 800 && said.contains("; and 995 more, which"), "{said}");
    }
}
