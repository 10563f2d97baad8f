//! URLs, read as Go reads them. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    super::value::{Key, Value},
    Asked, Entry,
    Form::{Function, Method},
    Outcome,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("url", Function, 1, 1, |asked| {
        let url = asked.or_refused(read(asked)?)?;
        asked.may_make(usize::try_from(url.size()).unwrap_or(usize::MAX))?;
        Ok(Value::Url(url.into()))
    }),
    ("isURL", Function, 1, 1, |asked| {
        let [Value::String(text)] = asked.of else { return asked.no() };
        asked.spend(8 * text.len())?;
        Ok(Value::Bool(is_url(text)))
    }),
    ("getScheme", Method, 1, 1, |asked| part(asked, |url| &url.scheme)),
    ("getHost", Method, 1, 1, |asked| part(asked, |url| &url.host)),
    ("getHostname", Method, 1, 1, |asked| part(asked, |url| url.host_and_port().0)),
    ("getPort", Method, 1, 1, |asked| part(asked, |url| url.host_and_port().1)),
    ("getEscapedPath", Method, 1, 1, |asked| part(asked, |url| &url.path)),
    ("getQuery", Method, 1, 1, query),
];

/// A URL.
#[derive(Debug)]
pub(in super::super) struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
    text: String,
}

fn read(asked: &Asked<'_>) -> Result<Option<Url>, super::Halt> {
    let [Value::String(text)] = asked.of else { return asked.no() };
    asked.spend(8 * text.len())?;
    Ok(is_url(text).then(|| Url::read(text)).flatten())
}

/// Whether it is one by itself: with a scheme, or a path from the root.
pub(super) fn is_url(text: &str) -> bool {
    Parts::read(text, true).is_some()
}

fn part(asked: &Asked<'_>, of: fn(&Url) -> &str) -> Outcome {
    match asked.of {
        [Value::Url(url)] => asked.text(of(url)),
        _ => asked.no(),
    }
}

fn query(asked: &Asked<'_>) -> Outcome {
    let [Value::Url(url)] = asked.of else { return asked.no() };
    asked.may_make(url.query.len().saturating_mul(64))?;
    let mut fields: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let read = |text: &str| unescape(text, Within::Query);
        let (Some(key), Some(value)) = (read(key), read(value)) else { continue };
        // What is no text has no value here.
        let key = asked.or_refused(String::from_utf8(key).ok())?;
        let value = asked.or_refused(String::from_utf8(value).ok())?;
        fields.entry(Key::String(key.into())).or_default().push(Value::text(value));
    }
    Ok(Value::map(fields.into_iter().map(|(key, values)| (key, Value::list(values))).collect()))
}

impl Url {
    pub(in super::super) fn size(&self) -> u64 {
        3 * self.text.len() as u64
    }

    pub(in super::super) fn text(&self) -> &str {
        &self.text
    }

    fn read(text: &str) -> Option<Self> {
        let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
        let parts = Parts::read(text, false)?;
        let decoded = unescape(fragment, Within::Fragment)?;
        let fragment = escaped(&decoded, fragment, Within::Fragment);
        let path = if parts.path == "*" {
            "*".to_owned()
        } else {
            escaped(&unescape(parts.path, Within::Path)?, parts.path, Within::Path)
        };
        let mut written = String::new();
        if !parts.scheme.is_empty() {
            written.extend([&*parts.scheme, ":"]);
        }
        if parts.opaque.is_empty() {
            let is_named = !parts.host.is_empty() || parts.user.is_some();
            if is_named || !parts.scheme.is_empty() && !parts.omits_host && !path.is_empty() {
                written.push_str("//");
            }
            if let Some(user) = &parts.user {
                written.extend([user, "@"]);
            }
            written.push_str(&escape(parts.host.as_bytes(), Within::Host));
            if !path.is_empty() && !path.starts_with('/') && !parts.host.is_empty() {
                written.push('/');
            }
            written.push_str(&path);
        } else {
            written.push_str(parts.opaque);
        }
        if parts.forces_query || !parts.query.is_empty() {
            written.extend(["?", parts.query]);
        }
        if !fragment.is_empty() {
            written.extend(["#", &fragment]);
        }
        let query = parts.query.to_owned();
        Some(Self { scheme: parts.scheme, host: parts.host, path, query, text: written })
    }

    fn host_and_port(&self) -> (&str, &str) {
        let (host, port) = match self.host.rfind(':') {
            Some(colon) if is_port(&self.host[colon..]) => (&self.host[..colon], &self.host[colon + 1..]),
            _ => (&*self.host, ""),
        };
        (host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host), port)
    }
}

/// Of what a URL is made, without its fragment.
struct Parts<'t> {
    scheme: String,
    opaque: &'t str,
    user: Option<String>,
    host: String,
    omits_host: bool,
    path: &'t str,
    query: &'t str,
    forces_query: bool,
}

impl<'t> Parts<'t> {
    /// `is_whole`: it has to stand by itself.
    fn read(text: &'t str, is_whole: bool) -> Option<Self> {
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) || text.is_empty() && is_whole {
            return None;
        }
        let mut parts = Self {
            scheme: String::new(),
            opaque: "",
            user: None,
            host: String::new(),
            omits_host: false,
            path: "",
            query: "",
            forces_query: false,
        };
        if text == "*" {
            parts.path = text;
            return Some(parts);
        }
        let (scheme, mut rest) = scheme(text)?;
        parts.scheme = scheme.to_ascii_lowercase();
        if rest.ends_with('?') && rest.matches('?').count() == 1 {
            parts.forces_query = true;
            rest = &rest[..rest.len() - 1];
        } else if let Some((before, query)) = rest.split_once('?') {
            (rest, parts.query) = (before, query);
        }
        if !rest.starts_with('/') {
            if !parts.scheme.is_empty() {
                parts.opaque = rest;
                return Some(parts);
            }
            if is_whole || rest.split('/').next().is_some_and(|first| first.contains(':')) {
                return None;
            }
        }
        let has_authority = !parts.scheme.is_empty() || !is_whole && !rest.starts_with("///");
        if has_authority && rest.starts_with("//") {
            let inside = &rest[2..];
            let (authority, path) = inside.split_at(inside.find('/').unwrap_or(inside.len()));
            rest = path;
            let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
            parts.host = read_host(&parts.scheme, host)?;
            parts.user = match user {
                Some(user) => Some(read_user(user)?),
                None => None,
            };
        } else if !parts.scheme.is_empty() {
            parts.omits_host = rest.starts_with('/');
        }
        unescape(rest, Within::Path)?;
        parts.path = rest;
        Some(parts)
    }
}

fn scheme(text: &str) -> Option<(&str, &str)> {
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return None,
            b':' => return Some((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    Some(("", text))
}

fn read_user(user: &str) -> Option<String> {
    if !user.chars().all(|part| part.is_ascii_alphanumeric() || "-._:~!$&'()*+,;=%@".contains(part)) {
        return None;
    }
    let read = |text: &str| unescape(text, Within::User).map(|bytes| escape(&bytes, Within::User));
    Some(match user.split_once(':') {
        Some((name, password)) => format!("{}:{}", read(name)?, read(password)?),
        None => read(user)?,
    })
}

fn read_host(scheme: &str, host: &str) -> Option<String> {
    match host.rfind('[') {
        Some(0) => {
            let (inside, port) = host[1..].rsplit_once(']')?;
            if !is_port(port) {
                return None;
            }
            let inside = match inside.find("%25") {
                Some(zone) => {
                    let mut bytes = unescape(&inside[..zone], Within::Host)?;
                    bytes.extend(unescape(&inside[zone..], Within::Zone)?);
                    bytes
                }
                None => unescape(inside, Within::Host)?,
            };
            let inside = String::from_utf8(inside).ok()?;
            let (address, zone) = inside.split_once('%').map_or((&*inside, None), |(it, zone)| (it, Some(zone)));
            let is_six = matches!(address.parse(), Ok(IpAddr::V6(_)));
            (is_six && zone != Some("")).then(|| format!("[{inside}]{port}"))
        }
        Some(_) => None,
        None => {
            let mut colon = host.find(':');
            if scheme != "http" && scheme != "https" {
                colon = host.rfind(':');
            }
            if colon.is_some_and(|colon| !is_port(&host[colon..])) {
                return None;
            }
            String::from_utf8(unescape(host, Within::Host)?).ok()
        }
    }
}

fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.bytes().all(|digit| digit.is_ascii_digit()))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Path,
    Host,
    Zone,
    User,
    Query,
    Fragment,
}

/// Whether a byte stands for itself there.
fn is_plain(byte: u8, within: Within) -> bool {
    byte.is_ascii_alphanumeric()
        || b"-_.~".contains(&byte)
        || match within {
            Within::Host | Within::Zone => b"!$&'()*+,;=:[]<>\"".contains(&byte),
            Within::Path => b"$&+,/:;=@".contains(&byte),
            Within::User => b"$&+,;=".contains(&byte),
            Within::Query => false,
            Within::Fragment => b"$&+,/:;=?@!()*".contains(&byte),
        }
}

fn unescape(text: &str, within: Within) -> Option<Vec<u8>> {
    let is_host = within == Within::Host || within == Within::Zone;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let code = after.get(..2).filter(|code| code.iter().all(u8::is_ascii_hexdigit))?;
                let value = u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()?;
                // A host escapes what is not ASCII, and a zone the percent sign that begins it.
                let is_percent = code == b"25";
                if within == Within::Host && value < 0x80 && !is_percent
                    || within == Within::Zone && !is_percent && value != b' ' && !is_plain(value, Within::Host)
                {
                    return None;
                }
                bytes.push(value);
                rest = &after[2..];
            }
            b'+' if within == Within::Query => bytes.push(b' '),
            byte if is_host && byte.is_ascii() && !is_plain(byte, within) => return None,
            byte => bytes.push(byte),
        }
    }
    Some(bytes)
}

fn escape(bytes: &[u8], within: Within) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        if is_plain(*byte, within) {
            text.push(char::from(*byte));
        } else {
            // To a String it never fails.
            _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// As it was written, if that is an escaping, and else as it would be.
fn escaped(bytes: &[u8], written: &str, within: Within) -> String {
    let may_stand = |byte: u8| b"!$&'()*+,;=:@[]%".contains(&byte) || is_plain(byte, within);
    if written.bytes().all(may_stand) { written.to_owned() } else { escape(bytes, within) }
}
