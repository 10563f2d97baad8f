//! What becomes of the serving certificate: from what the Secret holds to the next step. Pure; the time is an argument.
//!
//! A renewal refuses no request, because at each moment the API server trusts whatever any replica serves:
//!
//! 1. The next pair is stored beside the one that is served, and its authority is added to the bundle.
//! 2. The bundle is written into every configuration, and the API servers get [`TRUST`] to see it.
//! 3. The next pair takes the place of the one that is served. The replicas load it, each in its time.
//! 4. When every replica has been asked and serves it, the old authority is taken out of the bundle.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{ByteString, jiff::Timestamp};

use super::certificate::{Good, Pair, Unfit, has_expired, judge, split};

/// How long API servers get to see a configuration that was written.
pub const TRUST: Duration = Duration::from_secs(5);

/// What the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// What is served.
    pub serving: Pair,
    /// What will be.
    pub next: Option<Pair>,
    /// The authorities that are trusted, each as PEM.
    pub authorities: Vec<String>,
}

type Data = BTreeMap<String, ByteString>;

impl Contents {
    /// As the data of a Secret.
    pub fn data(&self) -> Data {
        let mut data = BTreeMap::from([
            ("tls.crt", self.serving.chain.clone()),
            ("tls.key", self.serving.key.clone()),
            ("ca.crt", self.authorities.concat()),
        ]);
        if let Some(next) = &self.next {
            data.insert("next.crt", next.chain.clone());
            data.insert("next.key", next.key.clone());
        }
        data.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect()
    }
}

/// A Secret's data, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Held {
    /// What is served.
    pub serving: Result<Good, Unfit>,
    /// What will be, if anything.
    pub next: Option<Result<Good, Unfit>>,
    /// The authorities that are trusted, each as PEM.
    pub authorities: Vec<String>,
}

impl Held {
    /// Reads what is in the Secret.
    pub fn read(data: &Data, names: &[String], now: Timestamp) -> Self {
        let text = |name: &str| data.get(name).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned());
        let authorities = text("ca.crt").unwrap_or_default();
        // Without authorities, `judge` does not check names and signatures.
        let trusted = if authorities.trim().is_empty() { "none" } else { &authorities };
        let pair = |certificate: &str, key: &str| {
            judge(&text(certificate).unwrap_or_default(), &text(key).unwrap_or_default(), trusted, names, now)
        };
        let next =
            (data.contains_key("next.crt") || data.contains_key("next.key")).then(|| pair("next.crt", "next.key"));
        Self { serving: pair("tls.crt", "tls.key"), next, authorities: split(&authorities) }
    }
}

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing is to be made; these authorities are to be in every configuration.
    Rest {
        /// The bundle.
        authorities: Vec<String>,
        /// Some of it is there only for replicas that still serve an older certificate.
        retire: bool,
    },
    /// As above; when that has been so for [`TRUST`], `then` is stored.
    Trust {
        /// The bundle.
        authorities: Vec<String>,
        /// The next pair in the place of the one that is served.
        then: Contents,
    },
    /// A new pair is to be made. [`Contents`] are those of [`renewed`] with it.
    Renew(Why),
}

/// Why a pair is made.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// Less than a third of its life is left.
    Due,
    /// What is there cannot be used.
    Unfit(Unfit),
}

/// What is to be done about the Secret.
pub fn step(held: &Held, now: Timestamp) -> Step {
    let authorities = |pairs: &[&Pair]| bundle(pairs, &held.authorities, now);
    match (&held.serving, &held.next) {
        (Err(unfit), _) => Step::Renew(Why::Unfit(unfit.clone())),
        (Ok(_), Some(Err(unfit))) => Step::Renew(Why::Unfit(unfit.clone())),
        (Ok(serving), Some(Ok(next))) => {
            let authorities = authorities(&[&serving.pair, &next.pair]);
            let then = bundle(&[&next.pair, &serving.pair], &held.authorities, now);
            Step::Trust { authorities, then: Contents { serving: next.pair.clone(), next: None, authorities: then } }
        }
        (Ok(serving), None) if serving.is_due(now) => Step::Renew(Why::Due),
        (Ok(serving), None) => {
            let authorities = authorities(&[&serving.pair]);
            Step::Rest { retire: authorities.len() > 1, authorities }
        }
    }
}

/// What is stored with a new pair: it comes next if anything good is served, by the Secret or else by this replica, for the
/// API servers do not trust it yet. `trusted` is the bundle that this leader has written last: other replicas may serve
/// something that neither the Secret nor this replica knows any more.
pub fn renewed(held: &Held, served_here: Option<&Good>, trusted: &[String], new: Pair, now: Timestamp) -> Contents {
    let served = held.serving.as_ref().ok().or_else(|| served_here.filter(|good| good.not_after > now));
    match served {
        Some(served) if !served.pair.authority.is_empty() => {
            // Who has put a foreign certificate there may have put an authority there as well.
            let others = if held.serving.is_ok() { held.authorities.as_slice() } else { trusted };
            let authorities = bundle(&[&served.pair, &new], others, now);
            Contents { serving: served.pair.clone(), next: Some(new), authorities }
        }
        _ => Contents { authorities: bundle(&[&new], trusted, now), serving: new, next: None },
    }
}

/// What is stored when every replica serves what the Secret holds.
pub fn retired(held: &Held) -> Option<Contents> {
    let serving = held.serving.as_ref().ok()?.pair.clone();
    Some(Contents { authorities: vec![serving.authority.clone()], serving, next: None })
}

/// Those of the pairs first, then the others that are still good, each once; of the others eight at the most.
fn bundle(pairs: &[&Pair], others: &[String], now: Timestamp) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let own = pairs.iter().map(|pair| &pair.authority);
    for one in own.chain(others.iter().filter(|one| !has_expired(one, now)).take(8)) {
        let one = format!("{}\n", one.trim());
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}
