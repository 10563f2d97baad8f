//! The tree of values in, a valid [`Configuration`] out, or every reason why there is none.
//!
//! Reading never stops at an error: a field that is wrong stands for its default while the rest is checked.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use super::{
    Certificate, Configuration, Election, Errors, Escalation, GroupKind, Kind, LONGEST_LEASE, Limits, LockKind, Offer,
    OnLoss, Placement, Rebalance, StandbyMode, Timings, WebhookSettings, WithoutWebhooks,
    duration::show,
    errors::Gathered,
    groups::{self, Entry},
    raw::{self, Node, Position, Value},
    section::{Located, Section},
    size,
};

const API_VERSION: &str = "leasehold.dev/v1alpha1";
const KIND: &str = "Configuration";

const DEFAULT_INSTANCE: &str = "leasehold";
pub(super) const DEFAULT_TIMINGS: Timings = Timings {
    lease_duration: Duration::from_secs(15),
    renew_deadline: Duration::from_secs(10),
    retry_period: Duration::from_secs(2),
    request_timeout: Duration::from_secs(2),
};
const DEFAULT_GRACE: Duration = Duration::from_secs(2);
const DEFAULT_SETTLE: Duration = Duration::from_secs(5);
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
pub(super) const DEFAULT_LOAD: Load = Load {
    weight: 1,
    concurrency: 4,
    resync: Duration::from_secs(600),
    standby: StandbyMode::Successor,
    limits: Limits { object: 512 << 10, cache: 16 << 20 },
};
/// Of one object: its marks are kept whatever it weighs, and an API server takes no larger one.
const OBJECT_SIZES: (u64, u64) = (4 << 10, 4 << 20);
/// Of all that is kept of a kind.
const CACHE_SIZES: (u64, u64) = (4 << 10, 64 << 30);

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// A renewal takes some ten seconds, and begins when a third is left.
const LEAST_LIFETIME: Duration = Duration::from_secs(90);

/// Room for the arithmetic on weights, and far more than a spread can make use of.
pub(super) const WEIGHTS: (u16, u16) = (1, 1000);
pub(super) const CONCURRENCIES: (u16, u16) = (1, 1000);
pub(super) const CAPACITIES: (u16, u16) = (1, 1000);

pub(super) const REBALANCES: [(&str, Rebalance); 3] =
    [("Automatic", Rebalance::Automatic), ("OnRestart", Rebalance::OnRestart), ("Never", Rebalance::Never)];
pub(super) const STANDBYS: [(&str, StandbyMode); 3] =
    [("None", StandbyMode::None), ("Successor", StandbyMode::Successor), ("All", StandbyMode::All)];

pub(super) const ON_LOSSES: [(&str, OnLoss); 2] = [("Reelect", OnLoss::Reelect), ("Exit", OnLoss::Exit)];
pub(super) const MODES: [(&str, Mode); 2] = [("PerKind", Mode::PerKind), ("Single", Mode::Single)];

/// The word of `election.mode`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    PerKind,
    Single,
}

/// Ports that can be listened on.
pub(super) const PORTS: (u16, u16) = (1, 65535);
/// Whether leasehold itself issues the certificate of webhooks.
pub(super) const ISSUERS: [(&str, bool); 2] = [("Leasehold", true), ("External", false)];
pub(super) const LOCKS: [(&str, LockKind); 3] =
    [("Lease", LockKind::Lease), ("ConfigMap", LockKind::ConfigMap), ("ConfigMapsLeases", LockKind::ConfigMapsLeases)];

pub(super) const ESCALATIONS: [(&str, Escalation); 2] = [("Check", Escalation::Check), ("Trust", Escalation::Trust)];

pub(super) const LABEL_MAX: usize = 63;
pub(super) const SUBDOMAIN_MAX: usize = 253;

/// What a kind may set for itself and `defaults` for all.
#[derive(Clone, Copy)]
pub(super) struct Load {
    pub(super) weight: u16,
    pub(super) concurrency: u16,
    pub(super) resync: Duration,
    pub(super) standby: StandbyMode,
    pub(super) limits: Limits,
}

pub(super) fn configuration(file: &str, text: &str, reconcilers: &[Offer<'_>]) -> Result<Configuration, Errors> {
    let mut errors = Gathered::new(file, text);
    match raw::parse(text) {
        Ok(root) => {
            let configuration = top(&root, reconcilers, &mut errors);
            if errors.is_empty() { Ok(configuration) } else { Err(errors.into_errors()) }
        }
        Err(unreadable) => {
            errors.add(unreadable.at, "", unreadable.message);
            Err(errors.into_errors())
        }
    }
}

pub(super) fn top(root: &Node, reconcilers: &[Offer<'_>], errors: &mut Gathered<'_>) -> Configuration {
    let mut section = Section::open(root, "", errors);
    section.exactly("apiVersion", API_VERSION, errors);
    section.exactly("kind", KIND, errors);
    let instance = instance(&mut section, errors);
    let (lease_namespace, timings) = leases(&mut section, errors);
    let placement = placement(&mut section, timings.lease_duration, errors);
    let drain_timeout = section.duration("drainTimeout", (Duration::ZERO, HOUR), errors);
    let election = election(&mut section, &instance, errors);
    let on_loss = section.choice("onLoss", &ON_LOSSES, errors).unwrap_or_default();
    let defaults = defaults(&mut section, errors);
    let kinds = kinds(&mut section, defaults, reconcilers, &election, errors);
    let webhooks = webhooks(&mut section, errors);
    let without_webhooks = without_webhooks(&mut section, errors);
    section.finish(errors);
    Configuration {
        instance,
        lease_namespace,
        timings,
        placement,
        drain_timeout: drain_timeout.map_or(DEFAULT_DRAIN_TIMEOUT, |found| found.value),
        election,
        on_loss,
        kinds,
        webhooks,
        without_webhooks,
    }
}

fn instance(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> String {
    let Some(found) = section.text("instance", errors) else { return DEFAULT_INSTANCE.to_owned() };
    if !is_label_value(found.value) {
        errors.add(
            found.at,
            &found.path,
            format!(
                "`{}` is no label value: 1 to {LABEL_MAX} letters, digits, `-`, `_` and `.`, \
                 with a letter or digit at both ends",
                found.value
            ),
        );
    }
    found.value.to_owned()
}

/// The Lease of a `Single` election is called like the instance, which no other installation of the namespace has.
fn election(top: &mut Section<'_>, instance: &str, errors: &mut Gathered<'_>) -> Election {
    let Some(node) = top.take("election") else { return Election::PerKind };
    if let Value::Text(mode) = &node.value {
        let message = format!("expected a mapping of fields; write `election: {{mode: {mode}}}`");
        errors.add(node.at, &top.path_of("election"), message);
        return Election::PerKind;
    }
    let mut section = Section::open(node, &top.path_of("election"), errors);
    let mode = section.choice("mode", &MODES, errors);
    let lease_at = section.place("lease");
    let lease = lease_name(&mut section, errors);
    let names_one = section.has("lease");
    let lock_at = section.place("lock");
    let (says_lock, lock) = (section.has("lock"), section.choice("lock", &LOCKS, errors).unwrap_or_default());
    if !section.has("mode") && matches!(node.value, Value::Map(_)) {
        errors.add(section.at(), &section.path_of("mode"), "missing; write `mode: Single` or `mode: PerKind`");
    }
    let (mode_at, mode_path) = section.place("mode");
    section.finish(errors);
    match mode {
        Some(Mode::Single) => {
            let lease = match lease {
                Some(lease) => lease.value.to_owned(),
                None => {
                    if !names_one && !is_lease_name(instance) {
                        let message = format!(
                            "the Lease of all kinds is called like the instance unless election.lease.name says otherwise, \
                             and `{instance}` is no Lease name; set election.lease.name"
                        );
                        errors.add(mode_at, &mode_path, message);
                    }
                    instance.to_owned()
                }
            };
            Election::Single { lease, lock }
        }
        Some(Mode::PerKind) => {
            if names_one {
                let message =
                    "each kind has its own Lease if election.mode is PerKind; remove `lease` or write `mode: Single`";
                errors.add(lease_at.0, &lease_at.1, message);
            }
            if says_lock {
                let message = "each kind has its own lock if election.mode is PerKind; write `lock` on the kinds or `mode: Single`";
                errors.add(lock_at.0, &lock_at.1, message);
            }
            Election::PerKind
        }
        _ => Election::PerKind,
    }
}

fn leases(top: &mut Section<'_>, errors: &mut Gathered<'_>) -> (Option<String>, Timings) {
    let Some(mut section) = top.section("leases", errors) else { return (None, DEFAULT_TIMINGS) };
    let namespace = section.text("namespace", errors);
    if let Some(found) = &namespace
        && !is_dns_label(found.value)
    {
        errors.add(found.at, &found.path, format!("`{}` is no namespace name: {}", found.value, dns_label_rule()));
    }
    let duration = section.duration("duration", (SECOND, LONGEST_LEASE), errors);
    let deadline = section.duration("renewDeadline", (MILLISECOND, HOUR), errors);
    let period = section.duration("retryPeriod", (MILLISECOND, HOUR), errors);
    let timeout = section.duration("requestTimeout", (MILLISECOND, HOUR), errors);
    let timings = timings(&section, [&duration, &deadline, &period, &timeout], errors);
    section.finish(errors);
    (namespace.map(|found| found.value.to_owned()), timings)
}

/// Checks the four durations against each other.
/// A duration that could not be read is in the file but not among `given`; its rules wait until it can be.
fn timings(section: &Section<'_>, given: [&Option<Located<Duration>>; 4], errors: &mut Gathered<'_>) -> Timings {
    let [duration, deadline, period, timeout] = given;
    let value = |given: &Option<Located<Duration>>, default| given.as_ref().map_or(default, |found| found.value);
    let timings = Timings {
        lease_duration: value(duration, DEFAULT_TIMINGS.lease_duration),
        renew_deadline: value(deadline, DEFAULT_TIMINGS.renew_deadline),
        retry_period: value(period, DEFAULT_TIMINGS.retry_period),
        request_timeout: value(timeout, DEFAULT_TIMINGS.request_timeout),
    };
    let readable = |given: &Option<Located<Duration>>, name| given.is_some() || !section.has(name);
    let said = |given: &Option<Located<Duration>>, value| {
        format!("{}{}", show(value), if given.is_some() { "" } else { " (the default)" })
    };

    if let Some(found) = duration
        && found.value.subsec_nanos() != 0
    {
        let message = format!("`{}` is not in whole seconds, which is all a Lease can say", show(found.value));
        errors.add(found.at, &found.path, message);
    }

    let least = timings.renew_deadline + timings.retry_period + timings.request_timeout;
    let all_readable = readable(duration, "duration")
        && readable(deadline, "renewDeadline")
        && readable(period, "retryPeriod")
        && readable(timeout, "requestTimeout");
    if all_readable && timings.lease_duration <= least {
        let (at, path) = first_of([duration, deadline, period, timeout]);
        errors.add(
            at.unwrap_or(section.at()),
            &path.unwrap_or_else(|| section.path_of("duration")),
            format!(
                "the rule `duration > renewDeadline + retryPeriod + requestTimeout` is broken: {} is not more than \
                 {} + {} + {} = {}; lengthen duration or shorten the others",
                said(duration, timings.lease_duration),
                said(deadline, timings.renew_deadline),
                said(period, timings.retry_period),
                said(timeout, timings.request_timeout),
                show(least),
            ),
        );
    }
    if readable(deadline, "renewDeadline")
        && readable(period, "retryPeriod")
        && timings.renew_deadline.as_nanos() * 10 <= timings.retry_period.as_nanos() * 12
    {
        let (at, path) = first_of([deadline, period]);
        errors.add(
            at.unwrap_or(section.at()),
            &path.unwrap_or_else(|| section.path_of("renewDeadline")),
            format!(
                "the rule `renewDeadline > 1.2 x retryPeriod` is broken: {} is not more than 1.2 x {}; \
                 lengthen renewDeadline or shorten retryPeriod",
                said(deadline, timings.renew_deadline),
                said(period, timings.retry_period),
            ),
        );
    }
    timings
}

/// Where a rule over several fields is reported: at the first of them that the file has.
fn first_of<const N: usize>(given: [&Option<Located<Duration>>; N]) -> (Option<Position>, Option<String>) {
    let first = given.into_iter().flatten().next();
    (first.map(|found| found.at), first.map(|found| found.path.clone()))
}

fn placement(top: &mut Section<'_>, lease_duration: Duration, errors: &mut Gathered<'_>) -> Placement {
    let default = Placement {
        rebalance: Rebalance::default(),
        settle: DEFAULT_SETTLE,
        grace: DEFAULT_GRACE.min(lease_duration / 2),
        capacity: 1,
    };
    let Some(mut section) = top.section("placement", errors) else { return default };
    let rebalance = section.choice("rebalance", &REBALANCES, errors);
    let settle = section.duration("settle", (Duration::ZERO, HOUR), errors);
    let grace = section.duration("grace", (Duration::ZERO, HOUR), errors);
    let capacity = section.number("capacity", CAPACITIES, errors);
    section.finish(errors);
    if let Some(found) = &grace
        && found.value >= lease_duration
    {
        let message = format!(
            "must be shorter than leases.duration, or it would delay every failover by more than expiry does: \
             {} is not less than {}",
            show(found.value),
            show(lease_duration)
        );
        errors.add(found.at, &found.path, message);
    }
    Placement {
        rebalance: rebalance.unwrap_or(default.rebalance),
        settle: settle.map_or(default.settle, |found| found.value),
        grace: grace.map_or(default.grace, |found| found.value),
        capacity: capacity.map_or(default.capacity, u32::from),
    }
}

/// Those of a file that says nothing of them.
pub(super) fn webhook_defaults(enabled: bool) -> WebhookSettings {
    WebhookSettings {
        enabled,
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        port: 9443,
        name: "leasehold-webhooks".to_owned(),
        shutdown_delay: Duration::from_secs(10),
        lifetime: 90 * 24 * HOUR,
        certificate: Certificate::Own,
    }
}

fn webhooks(top: &mut Section<'_>, errors: &mut Gathered<'_>) -> WebhookSettings {
    let Some(mut section) = top.section("webhooks", errors) else { return webhook_defaults(false) };
    // Who writes the section wants them.
    let default = webhook_defaults(true);
    let enabled = section.flag("enabled", errors);
    let port = section.number("port", PORTS, errors);
    let name = section.text("name", errors);
    if let Some(found) = &name {
        let longest = LABEL_MAX - "certificate.".len();
        if !is_dns_label(found.value) {
            errors.add(
                found.at,
                &found.path,
                format!("`{}` is no name of a Service: {}", found.value, dns_label_rule()),
            );
        } else if found.value.len() > longest {
            let message =
                format!("longer than {longest} characters: a Lease bears the name, and objects the Lease's as a label");
            errors.add(found.at, &found.path, message);
        }
    }
    let delay = section.duration("shutdownDelay", (Duration::ZERO, HOUR), errors);
    let (lifetime, certificate) = certificate(&mut section, errors);
    section.finish(errors);
    WebhookSettings {
        enabled: enabled.unwrap_or(default.enabled),
        port: port.unwrap_or(default.port),
        name: name.map_or(default.name, |found| found.value.to_owned()),
        shutdown_delay: delay.map_or(default.shutdown_delay, |found| found.value),
        lifetime: lifetime.unwrap_or(default.lifetime),
        certificate,
        ..default
    }
}

fn without_webhooks(top: &mut Section<'_>, errors: &mut Gathered<'_>) -> WithoutWebhooks {
    let default = WithoutWebhooks::default();
    let Some(mut section) = top.section("withoutWebhooks", errors) else { return default };
    let path = section.path_of("types");
    let types = section.take("types");
    section.finish(errors);
    let Some(node) = types else { return default };
    let Value::List(list) = &node.value else {
        errors.add(node.at, &path, format!("expected a list such as [Job.batch, Pod], found {}", node.describe()));
        return default;
    };
    let mut types = Vec::new();
    for (number, node) in list.iter().enumerate() {
        let path = format!("{path}[{number}]");
        let Value::Text(text) = &node.value else {
            errors.add(node.at, &path, format!("expected text such as Job.batch, found {}", node.describe()));
            continue;
        };
        match group_kind(text) {
            None => {
                let message = format!(
                    "`{text}` is no type: write <Kind>.<group> such as `Job.batch`, or the kind alone for the core group, such as `Pod`"
                );
                errors.add(node.at, &path, message);
            }
            Some(of) if types.contains(&of) => errors.add(node.at, &path, format!("`{of}` stands twice; remove one")),
            Some(of) => types.push(of),
        }
    }
    WithoutWebhooks { types }
}

/// `<Kind>.<group>`, or the kind alone for the core group.
fn group_kind(text: &str) -> Option<GroupKind> {
    let (kind, group) = text.split_once('.').map_or((text, None), |(kind, group)| (kind, Some(group)));
    let is_valid = is_kind(kind) && group.is_none_or(is_subdomain);
    is_valid.then(|| GroupKind { group: group.unwrap_or_default().to_owned(), kind: kind.to_owned() })
}

fn certificate(webhooks: &mut Section<'_>, errors: &mut Gathered<'_>) -> (Option<Duration>, Certificate) {
    let Some(mut section) = webhooks.section("certificate", errors) else { return (None, Certificate::Own) };
    let issuer = section.choice("issuer", &ISSUERS, errors);
    let lifetime = section.duration("lifetime", (LEAST_LIFETIME, 10 * YEAR), errors);
    let files = section.text("files", errors);
    let elsewhere = if files.is_some() { "files" } else { "issuer: External" };
    if let Some(found) = &lifetime
        && (files.is_some() || issuer == Some(false))
    {
        let message =
            format!("is of certificates that leasehold makes, and there is `{elsewhere}`: remove one of the two");
        errors.add(found.at, &found.path, message);
    }
    let certificate = match (files, issuer) {
        (Some(found), Some(_)) => {
            errors.add(
                found.at,
                &found.path,
                "says where the certificate lies, so `issuer` has no meaning: remove one of the two",
            );
            Certificate::Own
        }
        (Some(found), None) if !found.value.starts_with('/') => {
            let message =
                format!("`{}` is no absolute path; write the folder that the Secret is mounted at", found.value);
            errors.add(found.at, &found.path, message);
            Certificate::Own
        }
        (Some(found), None) => Certificate::Files(found.value.to_owned()),
        (None, Some(false)) => Certificate::External,
        (None, Some(true) | None) => Certificate::Own,
    };
    section.finish(errors);
    (lifetime.map(|found| found.value), certificate)
}

fn defaults(top: &mut Section<'_>, errors: &mut Gathered<'_>) -> Load {
    let Some(mut section) = top.section("defaults", errors) else { return DEFAULT_LOAD };
    let load = load(&mut section, DEFAULT_LOAD, errors);
    section.finish(errors);
    load
}

fn load(section: &mut Section<'_>, default: Load, errors: &mut Gathered<'_>) -> Load {
    Load {
        weight: section.number("weight", WEIGHTS, errors).unwrap_or(default.weight),
        concurrency: section.number("concurrency", CONCURRENCIES, errors).unwrap_or(default.concurrency),
        resync: section.duration("resync", (SECOND, WEEK), errors).map_or(default.resync, |found| found.value),
        standby: section.choice("standby", &STANDBYS, errors).unwrap_or(default.standby),
        limits: limits(section, default.limits, errors),
    }
}

fn limits(section: &mut Section<'_>, default: Limits, errors: &mut Gathered<'_>) -> Limits {
    let Some(mut section) = section.section("limits", errors) else { return default };
    let object = section.size("object", OBJECT_SIZES, errors);
    let cache = section.size("cache", CACHE_SIZES, errors);
    let limits = Limits {
        object: object.as_ref().map_or(default.object, |found| found.value),
        cache: cache.as_ref().map_or(default.cache, |found| found.value),
    };
    if let Some(found) = cache.or(object).filter(|_| limits.cache < limits.object) {
        let message = format!(
            "an object of {} has no room in a cache of {}: make `cache` larger or `object` smaller",
            size::show(limits.object),
            size::show(limits.cache)
        );
        errors.add(found.at, &found.path, message);
    }
    section.finish(errors);
    limits
}

fn kinds(
    top: &mut Section<'_>,
    defaults: Load,
    reconcilers: &[Offer<'_>],
    election: &Election,
    errors: &mut Gathered<'_>,
) -> Vec<Kind> {
    let Some(node) = top.take("kinds") else {
        errors.add(top.at(), "kinds", "missing; list at least one kind");
        return Vec::new();
    };
    let Value::List(list) = &node.value else {
        errors.add(node.at, "kinds", format!("expected a list of kinds, found {}", node.describe()));
        return Vec::new();
    };
    if list.is_empty() {
        errors.add(node.at, "kinds", "the list is empty; list at least one kind");
    }
    let mut entries: Vec<Entry> = Vec::new();
    for (index, node) in list.iter().enumerate() {
        if let Some(entry) = kind(node, &format!("kinds[{index}]"), defaults, reconcilers, election, errors)
            && is_first(&entry, &entries, errors)
        {
            entries.push(entry);
        }
    }
    groups::share(&mut entries, election, errors);
    entries.into_iter().map(|entry| entry.kind).collect()
}

fn is_first(new: &Entry, entries: &[Entry], errors: &mut Gathered<'_>) -> bool {
    let same = |entry: &&Entry| entry.kind.group == new.kind.group && entry.kind.kind == new.kind.kind;
    let Some(first) = entries.iter().find(same) else { return true };
    let message = format!(
        "{} stands twice, first as {} on line {}; whatever its version, a kind has one entry: remove one",
        new.kind.name(),
        first.path,
        first.kind_at.line
    );
    errors.add(new.kind_at, &new.kind_path, message);
    false
}

/// `None` if group and kind could not be read, so that there is nothing to compare with others.
fn kind(
    node: &Node,
    path: &str,
    defaults: Load,
    reconcilers: &[Offer<'_>],
    election: &Election,
    errors: &mut Gathered<'_>,
) -> Option<Entry> {
    let is_mapping = matches!(node.value, Value::Map(_));
    let mut section = Section::open(node, path, errors);
    if !is_mapping {
        return None;
    }
    let group_version = group_version(&mut section, errors);
    let kind = kind_name(&mut section, errors);
    let plural = plural(&mut section, errors);
    let load = load(&mut section, defaults, errors);
    let standby_at = section.place("standby");
    let lease = lease_name(&mut section, errors).map(|found| found.map(str::to_owned));
    let lease_group = group_name(&mut section, errors).map(|found| found.map(str::to_owned));
    let lock_at = section.place("lock");
    let lock = section.choice("lock", &LOCKS, errors);
    let service_account = service_account(&mut section, errors);
    let escalation = section.choice("escalation", &ESCALATIONS, errors);
    let names = (group_version.as_ref()).zip(kind.as_ref()).map(|((group, _), kind)| (group.as_str(), kind.value));
    let in_code = reconcilers.iter().find(|offer| offer.in_code && offer.only.is_some() && offer.only == names);
    let reconciler = match in_code {
        None => reconciler(&mut section, reconcilers, errors),
        Some(offer) => {
            let (at, path) = section.place("reconciler");
            if section.take("reconciler").is_some() {
                let message = "the kind has its reconciler in code; remove `reconciler` here";
                errors.add(at, &path, message);
            }
            Some(By::Code(offer.name.to_owned()))
        }
    };
    section.not_yet("election", errors);
    section.not_yet("onLoss", errors);
    section.finish(errors);

    let ((group, version), kind) = (group_version?, kind?);
    let mut entry = Kind {
        lease_group: lease_group.as_ref().map(|group| group.value.clone()),
        lock: lock.unwrap_or_default(),
        weight: load.weight.into(),
        concurrency: load.concurrency,
        resync: load.resync,
        standby: load.standby,
        limits: load.limits,
        plural,
        service_account,
        escalation: escalation.unwrap_or_default(),
        ..Kind::new(group, version, kind.value)
    };
    let alone = lease.is_none() && lease_group.is_none() && *election == Election::PerKind;
    if alone && entry.lease_name.len() > LABEL_MAX {
        let message = format!(
            "the default Lease name `{}` is longer than {LABEL_MAX} characters, and objects bear it as a label; set lease.name",
            entry.lease_name
        );
        errors.add(kind.at, &kind.path, message);
    }
    if let Some(lease) = &lease {
        entry.lease_name.clone_from(&lease.value);
    }
    match reconciler {
        Some(By::Builtin(found)) => {
            entry.reconciler = found.value.to_owned();
            suits(&entry, &found, reconcilers, errors);
        }
        Some(By::Code(name)) => entry.reconciler = name,
        Some(By::Composition(file)) => {
            entry.reconciler = entry.name();
            entry.composition = Some(file.value.to_owned());
        }
        None => {}
    }
    Some(Entry {
        kind: entry,
        path: path.to_owned(),
        kind_at: kind.at,
        kind_path: kind.path,
        lease,
        group: lease_group,
        standby_at,
        lock,
        lock_at,
    })
}

pub(crate) fn group_version(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<(String, String)> {
    let found = section.text("apiVersion", errors);
    let Some(found) = found else {
        if !section.has("apiVersion") {
            let message = "missing; write <group>/<version> of the kind, such as `example.com/v1`";
            errors.add(section.at(), &section.path_of("apiVersion"), message);
        }
        return None;
    };
    let parts = found.value.split_once('/');
    let wrong = match parts {
        None if found.value == "v1" => return Some((String::new(), "v1".to_owned())),
        None => "it has no group, and the core group has `v1` only; write <group>/<version>".to_owned(),
        Some((group, _)) if !is_subdomain(group) => {
            format!("`{group}` is no API group: {}", subdomain_rule())
        }
        Some((group, version)) => {
            if is_version(version) {
                return Some((group.to_owned(), version.to_owned()));
            }
            format!("`{version}` is no API version: lower-case letters, digits and `-`, such as `v1` or `v1alpha1`")
        }
    };
    errors.add(found.at, &found.path, format!("`{}` is no apiVersion: {wrong}", found.value));
    None
}

pub(crate) fn kind_name<'n>(section: &mut Section<'n>, errors: &mut Gathered<'_>) -> Option<Located<&'n str>> {
    let Some(found) = section.text("kind", errors) else {
        if !section.has("kind") {
            let message = "missing; write the kind as in the objects' `kind:`, such as `Widget`";
            errors.add(section.at(), &section.path_of("kind"), message);
        }
        return None;
    };
    if !is_kind(found.value) {
        let message = format!(
            "`{}` is no kind: CamelCase, letters and digits, at most {LABEL_MAX}, as in the objects' `kind:`",
            found.value
        );
        errors.add(found.at, &found.path, message);
        return None;
    }
    Some(found)
}

fn is_kind(text: &str) -> bool {
    text.len() <= LABEL_MAX
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// What a CRD has as `spec.names.plural`.
fn plural(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<String> {
    let found = section.text("plural", errors)?;
    if !is_dns_label(found.value) {
        let message =
            format!("`{}` is no resource: write what the CRD has as spec.names.plural, such as `widgets`", found.value);
        errors.add(found.at, &found.path, message);
        return None;
    }
    Some(found.value.to_owned())
}

fn lease_name<'n>(section: &mut Section<'n>, errors: &mut Gathered<'_>) -> Option<Located<&'n str>> {
    let mut lease = section.section("lease", errors)?;
    let found = lease.text("name", errors);
    lease.finish(errors);
    if let Some(found) = &found {
        if !is_subdomain(found.value) {
            errors.add(found.at, &found.path, format!("`{}` is no Lease name: {}", found.value, subdomain_rule()));
        } else if found.value.len() > LABEL_MAX {
            let message = format!("longer than {LABEL_MAX} characters: objects bear the Lease's name as a label");
            errors.add(found.at, &found.path, message);
        }
    }
    found
}

/// A group's Lease bears its name, unless one of its kinds says otherwise.
fn group_name<'n>(section: &mut Section<'n>, errors: &mut Gathered<'_>) -> Option<Located<&'n str>> {
    let found = section.text("group", errors)?;
    if !is_lease_name(found.value) {
        let message = format!(
            "`{}` is no name of a group, which its Lease bears: at most {LABEL_MAX} characters, {}",
            found.value,
            subdomain_rule()
        );
        errors.add(found.at, &found.path, message);
    }
    Some(found)
}

fn service_account(section: &mut Section<'_>, errors: &mut Gathered<'_>) -> Option<String> {
    let found = section.text("serviceAccount", errors)?;
    if !is_subdomain(found.value) {
        let message = format!("`{}` is no name of a ServiceAccount: {}", found.value, subdomain_rule());
        errors.add(found.at, &found.path, message);
    }
    Some(found.value.to_owned())
}

fn is_lease_name(text: &str) -> bool {
    is_subdomain(text) && text.len() <= LABEL_MAX
}

/// What reconciles a kind, as the file has it.
enum By<'n> {
    /// It does not have it: that is given in code.
    Code(String),
    Builtin(Located<&'n str>),
    Composition(Located<&'n str>),
}

fn reconciler<'n>(section: &mut Section<'n>, offers: &[Offer<'_>], errors: &mut Gathered<'_>) -> Option<By<'n>> {
    let names: Vec<_> = offers.iter().filter(|offer| !offer.in_code).map(|offer| offer.name).collect();
    let names =
        if names.is_empty() { "none is compiled in".to_owned() } else { format!("one of {}", names.join(", ")) };
    let Some(mut reconciler) = section.section("reconciler", errors) else {
        let message = format!(
            "missing; write `reconciler: {{builtin: NAME}}`, NAME being {names}, or `reconciler: {{compose: FILE}}`"
        );
        errors.add(section.at(), &section.path_of("reconciler"), message);
        return None;
    };
    let builtin = reconciler.text("builtin", errors);
    let composition = reconciler.text("compose", errors);
    if !["builtin", "compose", "hook"].iter().any(|field| reconciler.has(field)) {
        let message = format!("missing; write the name of a reconciler, {names}, or `compose: FILE`");
        errors.add(reconciler.at(), &reconciler.path_of("builtin"), message);
    }
    reconciler.not_yet("hook", errors);
    reconciler.finish(errors);
    match (builtin, composition) {
        (Some(_), Some(second)) => {
            errors.add(second.at, &second.path, "a kind has one reconciler: remove `builtin` or `compose`");
            None
        }
        (None, Some(file)) if file.value.is_empty() => {
            errors.add(file.at, &file.path, "is empty; write the name of a file beside this one");
            None
        }
        (None, Some(file)) => Some(By::Composition(file)),
        (Some(found), None) if offers.iter().any(|offer| !offer.in_code && offer.name == found.value) => {
            Some(By::Builtin(found))
        }
        (Some(found), None) => {
            let message = format!("`{}` is no reconciler of this binary: {names}", found.value);
            errors.add(found.at, &found.path, message);
            None
        }
        (None, None) => None,
    }
}

fn suits(kind: &Kind, reconciler: &Located<&str>, offers: &[Offer<'_>], errors: &mut Gathered<'_>) {
    let only = offers.iter().find(|offer| offer.name == reconciler.value).and_then(|offer| offer.only);
    if let Some((group, only)) = only
        && (group, only) != (&kind.group, &kind.kind)
    {
        let message =
            format!("`{}` reconciles {only}.{group} and nothing else; this kind is {}", reconciler.value, kind.name());
        errors.add(reconciler.at, &reconciler.path, message);
    }
}

fn is_label_value(text: &str) -> bool {
    (1..=LABEL_MAX).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
}

pub(crate) fn is_dns_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=LABEL_MAX).contains(&text.len())
        && text.chars().all(|c| inner(c) || c == '-')
        && text.starts_with(inner)
        && text.ends_with(inner)
}

fn dns_label_rule() -> String {
    format!("1 to {LABEL_MAX} lower-case letters, digits and `-`, with a letter or digit at both ends")
}

fn is_version(text: &str) -> bool {
    is_dns_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Kubernetes bounds the whole name and, unlike DNS, not its parts.
pub(crate) fn is_subdomain(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=SUBDOMAIN_MAX).contains(&text.len())
        && text
            .split('.')
            .all(|part| part.starts_with(inner) && part.ends_with(inner) && part.chars().all(|c| inner(c) || c == '-'))
}

fn subdomain_rule() -> String {
    format!(
        "1 to {SUBDOMAIN_MAX} lower-case letters, digits, `-` and `.`, each part with a letter or digit at both ends"
    )
}
