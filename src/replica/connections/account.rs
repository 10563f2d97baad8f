//! The ServiceAccount that a kind acts as.
//!
//! The replica asks the API server to treat a request as the account's (impersonation), so that what a kind may do is what
//! its account may do, and the audit log names it. A token of the account would do the same, and would have to be asked for,
//! kept and renewed for every kind; the right to ask for tokens gives away no less than the right to impersonate.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::Kind;

/// A ServiceAccount. Both parts are valid names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// Its namespace: the replicas' own.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Account {
    /// That of a kind, if the file names one; in the namespace of the replicas.
    pub fn of(kind: &Kind, namespace: &str) -> Option<Self> {
        let name = kind.service_account.clone()?;
        Some(Self { namespace: namespace.to_owned(), name })
    }

    /// Has a request act as the account, whatever it said of impersonation. The API server adds the groups of an account.
    pub(super) fn sign(&self, headers: &mut HeaderMap) {
        let others: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
        for name in others {
            headers.remove(name);
        }
        let user = format!("system:serviceaccount:{}:{}", self.namespace, self.name);
        // Names have no character that a header cannot have; one that had would name no account, and nothing is allowed to that.
        let user = HeaderValue::try_from(user).unwrap_or_else(|_| HeaderValue::from_static("system:invalid"));
        headers.insert(HeaderName::from_static("impersonate-user"), user);
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_made_as_the_account_whatever_the_kubeconfig_impersonates() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("impersonate-user", "jane"),
            ("impersonate-group", "system:masters"),
            ("impersonate-uid", "1"),
            ("impersonate-extra-scopes", "all"),
            ("authorization", "Bearer x"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        Account { namespace: "ns".to_owned(), name: "widgets".to_owned() }.sign(&mut headers);
        let said: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.contains(&("impersonate-user", "system:serviceaccount:ns:widgets")), "{said:?}");
        assert!(said.contains(&("authorization", "Bearer x")), "{said:?}");
    }
}
