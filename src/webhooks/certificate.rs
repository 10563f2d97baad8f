//! Serving certificates: made, and judged. No IO; the time is an argument.
//!
//! Each serving certificate has an authority of its own whose key is forgotten as soon as it has signed: there is no key
//! to be stolen that could make another one, and every renewal takes the path of a change of authorities.

use std::{fmt, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::{
    CertificateError, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};

/// Clocks differ: a certificate is good from a little before it was made.
const SKEW: Duration = Duration::from_secs(300);

/// A certificate with its key and the authority that signed it, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, and those between it and the authority.
    pub chain: String,
    /// Its key.
    pub key: String,
    /// The certificate of its authority; empty if that is not known.
    pub authority: String,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is no text for a log.
        f.debug_struct("Pair").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// A pair that can be served.
#[derive(Clone, Debug)]
pub struct Good {
    /// It.
    pub pair: Pair,
    /// Good from.
    pub not_before: Timestamp,
    /// Good until.
    pub not_after: Timestamp,
    /// As rustls serves it.
    pub key: Arc<CertifiedKey>,
}

impl PartialEq for Good {
    fn eq(&self, other: &Self) -> bool {
        self.pair == other.pair
    }
}

impl Good {
    /// Less than a third of its life is left.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        self.not_after.duration_since(now) < life / 3
    }
}

/// Why a pair cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// There is none.
    Missing,
    /// It is no certificate with its key.
    Unreadable(String),
    /// It is for another name, or of another authority.
    Foreign(String),
    /// It has expired.
    Expired,
}

impl Unfit {
    /// One word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "Missing",
            Self::Unreadable(_) => "Unreadable",
            Self::Foreign(_) => "Foreign",
            Self::Expired => "Expired",
        }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("there is no certificate"),
            Self::Unreadable(why) => write!(f, "the certificate is unreadable: {why}"),
            Self::Foreign(why) => write!(f, "the certificate is foreign: {why}"),
            Self::Expired => f.write_str("the certificate has expired"),
        }
    }
}

/// Makes a pair for these names, good for `lifetime` from `now` on.
///
/// # Errors
/// If the system has no random numbers, or a name is none.
pub fn make(names: &[String], lifetime: Duration, now: Timestamp) -> Result<Pair, rcgen::Error> {
    let since_1970 = Duration::from_secs(now.as_second().unsigned_abs());
    let now = date_time_ymd(1970, 1, 1) + since_1970;
    let (from, until) = (now - SKEW, now + lifetime);
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, format!("leasehold webhooks {}", since_1970.as_secs()));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (authority.not_before, authority.not_after) = (from, until);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut serving = CertificateParams::new(names.to_vec())?;
    serving.distinguished_name.push(DnType::CommonName, "leasehold webhooks");
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.use_authority_key_identifier_extension = true;
    (serving.not_before, serving.not_after) = (from, until);
    let serving = serving.signed_by(&key, &authority)?;
    Ok(Pair { chain: serving.pem(), key: key.serialize_pem(), authority: authority.pem() })
}

/// Whether a pair can be served under the first of `names`, and clients that trust `authorities` believe it.
/// The authority is found among `authorities`; without any, names and signatures are the issuer's affair.
///
/// # Errors
/// Why not.
pub fn judge(chain: &str, key: &str, authorities: &str, names: &[String], now: Timestamp) -> Result<Good, Unfit> {
    if chain.trim().is_empty() && key.trim().is_empty() {
        return Err(Unfit::Missing);
    }
    let unreadable = |why: &dyn fmt::Display| Unfit::Unreadable(why.to_string());
    let chain_der: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(&format!("tls.crt: {error}")))?;
    let Some(first) = chain_der.first().cloned() else { return Err(unreadable(&"tls.crt holds no certificate")) };
    let key_der =
        PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| unreadable(&format!("tls.key: {error}")))?;
    let provider = provider();
    let certified = CertifiedKey::from_der(chain_der.clone(), key_der, &provider)
        .map_err(|error| unreadable(&format!("tls.key: {error}")))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&first).map_err(|error| unreadable(&error))?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).unwrap_or(Timestamp::MAX);
    let (not_before, not_after) = (time(parsed.validity().not_before), time(parsed.validity().not_after));
    if now >= not_after {
        return Err(Unfit::Expired);
    }
    let mut authority = String::new();
    if !authorities.trim().is_empty() {
        let found = split(authorities).into_iter().map(|one| (believed(&chain_der, &one, names, now, &provider), one));
        let mut why = "ca.crt holds no certificate".to_owned();
        for (outcome, one) in found {
            match outcome {
                Ok(()) => {
                    authority = one;
                    break;
                }
                Err(error) => why = error,
            }
        }
        if authority.is_empty() {
            return Err(Unfit::Foreign(why));
        }
    }
    let pair = Pair { chain: chain.to_owned(), key: key.to_owned(), authority };
    Ok(Good { pair, not_before, not_after, key: Arc::new(certified) })
}

fn believed(
    chain: &[CertificateDer<'_>],
    authority: &str,
    names: &[String],
    now: Timestamp,
    provider: &Arc<CryptoProvider>,
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|error| format!("ca.crt: {error}"))?;
    roots.add(der).map_err(|error| format!("ca.crt: {error}"))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let verifier = verifier.map_err(|error| format!("ca.crt: {error}"))?;
    let name = names.first().cloned().unwrap_or_default();
    let server = ServerName::try_from(name.clone()).map_err(|error| format!("{name}: {error}"))?;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
    let (first, between) = chain.split_first().ok_or("no certificate")?;
    match verifier.verify_server_cert(first, between, &server, &[], now) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            Err("none of the authorities in ca.crt has signed it".to_owned())
        }
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Err(format!("it is not for {name}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The certificates of a bundle, each as PEM of its own.
pub fn split(bundle: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let blocks = bundle.split_inclusive(END).filter(|block| block.contains(END));
    blocks.map(|block| format!("{}\n", block.trim())).collect()
}

/// Whether a certificate of an authority is of no use any more.
pub fn has_expired(authority: &str, now: Timestamp) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(authority.as_bytes()) else { return true };
    x509_parser::parse_x509_certificate(&der)
        .map_or(true, |(_, parsed)| parsed.validity().not_after.timestamp() <= now.as_second())
}

/// The cryptography that kube uses as well.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
