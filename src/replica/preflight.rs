//! Asks the API server which kinds can be reconciled here: their CRDs are served, and every permission they need is granted.
//!
//! Asked before this replica competes for a kind's Lease, and again from time to time: a kind that cannot be reconciled
//! must not be led (rule 10), and one that has become possible must not wait for a restart.
//!
//! One preflight asks for all kinds of a replica: discovery once for each API version, and one review of the rules of each
//! account that kinds act as.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, Stream, StreamExt as _, future::join_all, stream};
use k8s_openapi::{
    api::authorization::v1::{
        ResourceAttributes, ResourceRule, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SelfSubjectRulesReview,
        SelfSubjectRulesReviewSpec,
    },
    api::core::v1::ServiceAccount,
    apimachinery::pkg::apis::meta::v1::APIResource,
};
use kube::{
    Api, Client,
    api::PostParams,
    core::{ApiResource, GroupVersion, GroupVersionKind},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    clock::about,
    connections::Account,
    problem::{describe, is_unserved},
    term::Access,
};
use crate::config::Kind;

/// Between two looks at all kinds.
const CONFIRM: Duration = Duration::from_secs(300);
/// Pauses before the next looks at a kind that cannot be reconciled; the last one repeats. The person who mends the cause waits.
const RETRY: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(5)];
/// Kinds that are due within this time are asked about together.
const TOGETHER: Duration = Duration::from_secs(1);
/// Between two looks that were asked for.
const ASKED: Duration = Duration::from_secs(1);
/// Looks that follow one that was asked for, though all seems well: discovery may still show a CRD that is being removed.
const DOUBTS: usize = 3;
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// Requests at a time.
const CONCURRENCY: usize = 8;

/// The namespace that our rules are reviewed for. A review is of one namespace, and shows what RoleBindings grant there
/// beside what ClusterRoleBindings grant everywhere, without telling them apart; kinds are listed in all namespaces. So the
/// name is one that no namespace can have, for it has a dot: no RoleBinding can be there. The API server does not ask
/// whether the namespace exists.
const NO_NAMESPACE: &str = "cluster.leasehold.dev";

/// What the API server says of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kind can be reconciled, and this is how it is served.
    Runnable(Served),
    /// It cannot, and why.
    Blocked(Obstacle),
    /// The API server did not say, and why.
    Unknown(Unanswered),
}

/// How a kind is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Path of its API version, such as `/apis/example.com/v1`, or `/api/v1` for the core group.
    pub api: String,
    /// Name of the resource, such as `widgets`.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Served {
    /// Path of all its objects, such as `/apis/example.com/v1/widgets`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.api, self.plural)
    }
}

/// Why a kind cannot be reconciled here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// There is no such resource.
    #[error("the API server does not serve {api_version} {kind}: install its CRD")]
    NotServed {
        /// API version.
        api_version: String,
        /// Kind in CamelCase.
        kind: String,
    },
    /// These permissions are not granted in all namespaces. There is at least one.
    #[error(
        "{}not allowed to {}: `leasehold rbac` prints the rules that the configured kinds need, deploy/kinds.yaml holds those of the shipped ones",
        Subjected(.account), Permissions(.access)
    )]
    Denied {
        /// To whom; `None`: to the replica's own account.
        account: Option<Account>,
        /// What is missing.
        access: BTreeSet<Access>,
    },
    /// The account that the kind acts as is not there.
    #[error(
        "there is no ServiceAccount {0}, which the kind acts as (serviceAccount): `leasehold rbac` prints it with its rules"
    )]
    NoAccount(Account),
    /// The replica may not act as that account.
    #[error(
        "this replica may not act as ServiceAccount {0} (serviceAccount), which takes the verb impersonate on it: `leasehold rbac` prints the role"
    )]
    NotActing(Account),
}

/// Why nothing is known of a kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// There was no time to ask yet.
    #[error("the API server was not asked yet whether the kind can be reconciled")]
    NotAsked,
    /// Discovery failed.
    #[error("the API server did not say what it serves of {api_version}: {error}")]
    Discovery {
        /// API version.
        api_version: String,
        /// What the request met.
        error: String,
    },
    /// The review of our permissions failed.
    #[error("the API server did not say what this replica may do: {0}")]
    Permissions(String),
}

/// To whom something is denied, as the beginning of a sentence.
struct Subjected<'a>(&'a Option<Account>);

impl fmt::Display for Subjected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |account| write!(f, "ServiceAccount {account} is "))
    }
}

/// Permissions as the rules of a role spell them: those on one resource together.
struct Permissions<'a>(&'a BTreeSet<Access>);

impl fmt::Display for Permissions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut verbs = BTreeMap::<_, Vec<&str>>::new();
        for Access { group, resource, name, verb } in self.0 {
            verbs.entry((group, resource, name)).or_default().push(verb);
        }
        for (index, ((group, resource, name), verbs)) in verbs.into_iter().enumerate() {
            let semicolon = if index == 0 { "" } else { "; " };
            write!(f, "{semicolon}{} {resource}", verbs.join(", "))?;
            if let Some(name) = name {
                write!(f, " {name}")?;
            }
            if !group.is_empty() {
                write!(f, " in API group {group}")?;
            }
        }
        Ok(())
    }
}

/// A kind to ask about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The kind.
    pub kind: Arc<Kind>,
    /// What its reconciler needs beyond `list` and `watch` of the kind itself.
    pub needs: Vec<Access>,
    /// The account that it acts as; `None`: the replica's own.
    pub account: Option<Account>,
}

/// Has a [`Preflight`] look again. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Ask(watch::Sender<BTreeSet<usize>>);

impl Ask {
    /// Asks for a look at the kind with this index, because it met a 401, 403 or 404 while it ran. The verdict comes as
    /// others do. Asked at once, and at most once a second however often this is called.
    pub fn ask_again(&self, kind: usize) {
        self.0.send_if_modified(|kinds| kinds.insert(kind));
    }

    /// What was asked for since the last call.
    fn take(&self) -> BTreeSet<usize> {
        let mut taken = BTreeSet::new();
        self.0.send_if_modified(|kinds| {
            taken = std::mem::take(kinds);
            false
        });
        taken
    }
}

/// Looks at the kinds of a replica, again and again.
pub struct Preflight {
    client: Client,
    /// The clients of the accounts that kinds act as.
    acting: BTreeMap<Account, Client>,
    kinds: Vec<State>,
    verdicts: mpsc::UnboundedSender<(usize, Verdict)>,
    ask: Ask,
}

struct State {
    subject: Subject,
    /// When it is due, besides with all others.
    again_at: Option<Instant>,
    /// Which of the [`RETRY`] pauses comes next.
    retry: usize,
    /// Looks that are left to follow one that was asked for.
    doubts: usize,
    /// What access reviews have denied it, as of the last look.
    denied: BTreeSet<Access>,
}

/// What a look has found of a kind.
struct Looked {
    kind: usize,
    verdict: Verdict,
    denied: BTreeSet<Access>,
}

/// What the API server's rules grant an account everywhere.
struct Rules {
    rules: Vec<ResourceRule>,
    /// There may be more rules, and there may be refusals in spite of these.
    incomplete: bool,
}

#[expect(clippy::disallowed_methods, reason = "decides when to ask, and nothing else")]
fn now() -> Instant {
    Instant::now()
}

impl Preflight {
    /// A preflight for these kinds, and what has it look again. A verdict goes to `verdicts` with the index of its kind.
    ///
    /// `client` is the replica's own, and `acting` has one for each account that a kind acts as.
    pub fn new(
        client: Client,
        acting: BTreeMap<Account, Client>,
        kinds: Vec<Subject>,
        verdicts: mpsc::UnboundedSender<(usize, Verdict)>,
    ) -> (Self, Ask) {
        let state = |subject| State { subject, again_at: None, retry: 0, doubts: 0, denied: BTreeSet::new() };
        let ask = Ask(watch::Sender::default());
        (Self { client, acting, kinds: kinds.into_iter().map(state).collect(), verdicts, ask: ask.clone() }, ask)
    }

    /// Looks at all kinds at once and every five minutes, at those that cannot be reconciled every few seconds, and at
    /// those that [`Ask`] names. Sends each verdict, also if it is the last one again. Ends when the receiver has gone.
    /// Cancel safe.
    pub async fn run(mut self) {
        let mut asked = self.ask.0.subscribe();
        let (mut all_at, mut not_before) = (now(), now());
        loop {
            let wake = self.kinds.iter().filter_map(|state| state.again_at).fold(all_at, Instant::min);
            let requested = async {
                sleep_until(not_before).await;
                // The sender is in our hand, so it does not fail.
                drop(asked.wait_for(|kinds| !kinds.is_empty()).await);
            };
            tokio::select! {
                biased;
                () = requested => {}
                () = sleep_until(wake) => {}
                () = self.verdicts.closed() => return,
            }
            let now = now();
            let requested = self.ask.take();
            if !requested.is_empty() {
                not_before = now + ASKED;
            }
            let due: Vec<_> = (0..self.kinds.len())
                .filter(|index| {
                    let soon = self.kinds[*index].again_at.is_some_and(|at| at <= now + TOGETHER);
                    now >= all_at || soon || requested.contains(index)
                })
                .collect();
            if now >= all_at {
                all_at = now + about(CONFIRM);
            }
            for index in due.iter().filter(|index| requested.contains(index)) {
                (self.kinds[*index].retry, self.kinds[*index].doubts) = (0, DOUBTS + 1);
            }
            let Some(all) = self.look_and_tell(&due).await else { return };
            // What was looked at together is looked at together again.
            let retry = RETRY.map(about);
            for looked in all {
                self.kinds[looked.kind].settle(looked, &retry);
            }
        }
    }

    /// Sends each verdict as soon as it is there. `None` when the receiver has gone.
    async fn look_and_tell(&self, due: &[usize]) -> Option<Vec<Looked>> {
        let mut all = Vec::new();
        let mut looks = pin!(self.look(due));
        while let Some(some) = looks.next().await {
            for looked in some {
                self.verdicts.send((looked.kind, looked.verdict.clone())).ok()?;
                all.push(looked);
            }
        }
        Some(all)
    }

    /// Asks about the kinds with these indices. Those of one API version come together, and wait for no other.
    fn look<'a>(&'a self, due: &'a [usize]) -> impl Stream<Item = Vec<Looked>> + 'a {
        let mut versions = BTreeMap::<_, Vec<usize>>::new();
        for index in due {
            versions.entry(api_of(&self.kinds[*index].subject.kind)).or_default().push(*index);
        }
        let accounts: BTreeSet<_> = due.iter().map(|index| self.kinds[*index].subject.account.as_ref()).collect();
        let reviewed = |account| (account, self.standing(account).map(|rules| rules.map(Arc::new)).boxed().shared());
        let standings: BTreeMap<_, _> = accounts.into_iter().map(reviewed).collect();
        let look = move |(of, kinds): (GroupVersionPath, Vec<usize>)| {
            let mut by_account = BTreeMap::<_, Vec<usize>>::new();
            for index in kinds {
                by_account.entry(self.kinds[index].subject.account.as_ref()).or_default().push(index);
            }
            let waiting: Vec<_> = by_account.keys().filter_map(|account| standings.get(account).cloned()).collect();
            async move {
                let (served, standings) = tokio::join!(self.discover(&of), join_all(waiting));
                let mut all = Vec::new();
                for ((account, kinds), standing) in by_account.into_iter().zip(standings) {
                    all.extend(self.judge(&of, account, &kinds, &served, standing).await);
                }
                all
            }
        };
        stream::iter(versions).map(look).buffer_unordered(CONCURRENCY)
    }

    /// What follows for kinds of one API version and one account from what is served of it and from the account's rules.
    async fn judge(
        &self,
        of: &GroupVersionPath,
        account: Option<&Account>,
        kinds: &[usize],
        served: &Answer<Vec<APIResource>>,
        standing: Result<Arc<Rules>, Verdict>,
    ) -> Vec<Looked> {
        let mut answers = Vec::new();
        let mut open = Vec::new();
        for &kind in kinds {
            let state = &self.kinds[kind];
            let answer = |verdict| Looked { kind, verdict, denied: BTreeSet::new() };
            match (resource_of(&state.subject.kind, of, served), &standing) {
                (Ok(served), Ok(rules)) => open.push((kind, state.missing(&served, rules), served)),
                (Ok(_), Err(verdict)) => answers.push(answer(verdict.clone())),
                (Err(verdict), _) => answers.push(answer(verdict)),
            }
        }
        let incomplete = standing.is_ok_and(|rules| rules.incomplete);
        let unconfirmed = open.iter().flat_map(|(kind, missing, _)| {
            // A complete list of rules is as good as the access review that has confirmed it once.
            missing.iter().filter(|access| incomplete || !self.kinds[*kind].denied.contains(access))
        });
        let reviews = self.review_each(account, unconfirmed.cloned().collect()).await;
        for (kind, missing, served) in open {
            let mut denied = BTreeSet::new();
            let mut failed = None;
            for access in missing {
                match reviews.get(&access) {
                    Some(Ok(true)) => {}
                    Some(Err(error)) => failed = Some(error.clone()),
                    Some(Ok(false)) | None => drop(denied.insert(access)),
                }
            }
            let verdict = match failed {
                _ if !denied.is_empty() => {
                    Verdict::Blocked(Obstacle::Denied { account: account.cloned(), access: denied.clone() })
                }
                Some(error) => Verdict::Unknown(Unanswered::Permissions(error)),
                None => Verdict::Runnable(served),
            };
            answers.push(Looked { kind, verdict, denied });
        }
        answers
    }

    /// What is served of an API version: nothing of one that is not.
    async fn discover(&self, of: &GroupVersionPath) -> Answer<Vec<APIResource>> {
        // A shard of the replicas' own is about no kind.
        if of.version.is_empty() {
            return Ok(Vec::new());
        }
        let request = async {
            match of.group.is_empty() {
                true => self.client.list_core_api_resources(&of.version).await,
                false => self.client.list_api_group_resources(&of.api_version()).await,
            }
        };
        match within(request).await {
            Ok(list) => Ok(list.resources),
            Err(Problem::Refused(error)) if is_unserved(&error) => Ok(Vec::new()),
            Err(problem) => Err(problem.to_string()),
        }
    }

    /// What an account may do; the verdict on its kinds, if that is not to be known.
    async fn standing(&self, account: Option<&Account>) -> Result<Rules, Verdict> {
        if let Some(account) = account
            && self.is_missing(account).await
        {
            return Err(Verdict::Blocked(Obstacle::NoAccount(account.clone())));
        }
        match (self.review_rules(account).await, account) {
            (Ok(rules), _) => Ok(rules),
            (Err(Problem::Refused(error)), Some(account)) if is_of_impersonation(&error) => {
                Err(Verdict::Blocked(Obstacle::NotActing(account.clone())))
            }
            (Err(problem), _) => Err(Verdict::Unknown(Unanswered::Permissions(problem.to_string()))),
        }
    }

    /// Whether there is no such account. One that may not be read is taken to be there: its rules tell more.
    async fn is_missing(&self, account: &Account) -> bool {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &account.namespace);
        matches!(within(accounts.get_metadata(&account.name)).await, Err(Problem::Refused(error)) if is_unserved(&error))
    }

    fn acting(&self, account: Option<&Account>) -> Client {
        account.and_then(|account| self.acting.get(account)).unwrap_or(&self.client).clone()
    }

    async fn review_rules(&self, account: Option<&Account>) -> Result<Rules, Problem> {
        let spec = SelfSubjectRulesReviewSpec { namespace: Some(NO_NAMESPACE.to_owned()) };
        let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
        match within(Api::all(self.acting(account)).create(&PostParams::default(), &review)).await {
            Ok(SelfSubjectRulesReview { status: Some(status), .. }) => Ok(Rules {
                rules: status.resource_rules,
                incomplete: status.incomplete || status.evaluation_error.is_some(),
            }),
            // Where rules may not be read, each permission is asked for.
            Ok(_) => Ok(Rules { rules: Vec::new(), incomplete: true }),
            Err(Problem::Refused(error)) if is_of_impersonation(&error) => Err(Problem::Refused(error)),
            Err(Problem::Refused(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                Ok(Rules { rules: Vec::new(), incomplete: true })
            }
            Err(problem) => Err(problem),
        }
    }

    /// Whether each is granted: the API server's own decision, a request each.
    async fn review_each(&self, account: Option<&Account>, all: BTreeSet<Access>) -> BTreeMap<Access, Answer<bool>> {
        let ask = |access: Access| async move {
            let review = access_review(&access);
            let answer = within(Api::all(self.acting(account)).create(&PostParams::default(), &review)).await;
            let allowed = answer.map(|review| review.status.is_some_and(|status| status.allowed));
            (access, allowed.map_err(|problem| problem.to_string()))
        };
        stream::iter(all).map(ask).buffer_unordered(CONCURRENCY).collect().await
    }
}

impl State {
    fn settle(&mut self, looked: Looked, retry: &[Duration]) {
        self.denied = looked.denied;
        self.doubts = self.doubts.saturating_sub(1);
        if matches!(looked.verdict, Verdict::Runnable(_)) && self.doubts == 0 {
            (self.again_at, self.retry) = (None, 0);
        } else {
            // From now, not from before the look: an API server that answers late is not asked more often.
            self.again_at = Some(now() + retry[self.retry]);
            self.retry = (self.retry + 1).min(retry.len() - 1);
        }
    }

    /// What the rules do not surely grant of what the kind needs.
    fn missing(&self, served: &Served, rules: &Rules) -> Vec<Access> {
        let Subject { kind, needs, .. } = &self.subject;
        let own = ["list", "watch"].map(|verb| Access::new(verb, kind.group.clone(), served.plural.clone()));
        // A kind that was refused something in spite of a rule is believed where not all is in the rules.
        let doubted = rules.incomplete && self.doubts > 0;
        let own = own.into_iter().filter(|_| !kind.is_internal());
        let needs = needs.iter().map(|access| as_served(access, kind, served));
        own.chain(needs).filter(|access| doubted || !grants(&rules.rules, access)).collect()
    }
}

/// What a reconciler needs of its own kind it may have named by the plural of the configuration, or by that which English has:
/// discovery says the one that counts.
fn as_served(access: &Access, kind: &Kind, served: &Served) -> Access {
    let english = ApiResource::from_gvk(&GroupVersionKind::gvk(&kind.group, &kind.version, &kind.kind)).plural;
    let (resource, part) =
        access.resource.split_once('/').map_or((&*access.resource, None), |(it, part)| (it, Some(part)));
    let is_own = resource == english || kind.plural.as_deref() == Some(resource);
    if access.group != kind.group || !is_own {
        return access.clone();
    }
    let part = part.map_or(String::new(), |part| format!("/{part}"));
    Access { resource: format!("{}{part}", served.plural).into(), ..access.clone() }
}

/// Whether the API server refuses to treat the request as the account's. Without constrained impersonation
/// (<https://kep.k8s.io/5284>) the refusal is about the account; with it, about what was asked for, and only its words tell.
fn is_of_impersonation(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let of_account = status.details.as_ref().is_some_and(|details| details.kind == "serviceaccounts");
    status.code == 403 && (of_account || status.message.contains("cannot impersonate"))
}

/// What is known, or why it is not.
type Answer<T> = Result<T, String>;

/// An API version to discover.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct GroupVersionPath {
    group: String,
    version: String,
}

impl GroupVersionPath {
    fn api_version(&self) -> String {
        GroupVersion::gv(&self.group, &self.version).api_version()
    }

    fn path(&self) -> String {
        format!("/{}/{}", if self.group.is_empty() { "api" } else { "apis" }, self.api_version())
    }
}

fn api_of(kind: &Kind) -> GroupVersionPath {
    GroupVersionPath { group: kind.group.clone(), version: kind.version.clone() }
}

fn resource_of(kind: &Kind, of: &GroupVersionPath, served: &Answer<Vec<APIResource>>) -> Result<Served, Verdict> {
    if kind.is_internal() {
        return Ok(Served { api: String::new(), plural: String::new(), namespaced: false });
    }
    let api_version = of.api_version();
    let resources = match served {
        Ok(resources) => resources,
        Err(error) => return Err(Verdict::Unknown(Unanswered::Discovery { api_version, error: error.clone() })),
    };
    // Subresources are listed as resources of their own, and may be of the same kind.
    match resources.iter().find(|resource| resource.kind == kind.kind && !resource.name.contains('/')) {
        Some(resource) => Ok(Served { api: of.path(), plural: resource.name.clone(), namespaced: resource.namespaced }),
        None => Err(Verdict::Blocked(Obstacle::NotServed { api_version, kind: kind.kind.clone() })),
    }
}

/// Whether one of these rules grants it, read as the API server's RBAC reads them.
///
/// It errs on the side of no: an object's name in a rule is compared as it is, although other authorizers may say `*` for
/// all names, because to RBAC that is a name like others.
fn grants(rules: &[ResourceRule], access: &Access) -> bool {
    let subresource = access.resource.split_once('/').map(|(_, subresource)| subresource);
    rules.iter().any(|rule| {
        let groups = rule.api_groups.as_deref().unwrap_or_default();
        let resources = rule.resources.as_deref().unwrap_or_default();
        let names = rule.resource_names.as_deref().unwrap_or_default();
        rule.verbs.iter().any(|verb| verb == "*" || verb == access.verb)
            && groups.iter().any(|group| group == "*" || *group == access.group)
            && resources.iter().any(|resource| {
                // `*` covers subresources; `*/scale` is that one of all resources; `pods` is not `pods/status`.
                let of_all = resource.strip_prefix("*/");
                resource == "*" || *resource == access.resource || (of_all.is_some() && of_all == subresource)
            })
            && (names.is_empty() || access.name.as_ref().is_some_and(|name| names.iter().any(|one| one == name)))
    })
}

fn access_review(access: &Access) -> SelfSubjectAccessReview {
    let (resource, subresource) = match access.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (&*access.resource, None),
    };
    let attributes = ResourceAttributes {
        verb: Some(access.verb.to_owned()),
        group: Some(access.group.to_string()),
        resource: Some(resource.to_owned()),
        subresource,
        name: access.name.as_ref().map(ToString::to_string),
        ..ResourceAttributes::default()
    };
    SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..Default::default()
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{}", describe(.0))]
    Refused(kube::Error),
    #[error("no answer within {} s", REQUEST.as_secs())]
    Late,
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Problem> {
    timeout(REQUEST, request).await.map_err(|_| Problem::Late)?.map_err(Problem::Refused)
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Mutex, MutexGuard},
    };

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::time::sleep;

    use super::*;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> Value {
        json!({"apiGroups": groups, "resources": resources, "resourceNames": names, "verbs": verbs})
    }

    #[test]
    fn rules_are_read_as_the_api_server_reads_them() {
        let get = || Access::new("get", "apps", "deployments");
        let status = || Access::new("get", "apps", "deployments/status");
        let scale = || Access::new("get", "apps", "deployments/scale");
        let core = || Access::new("get", "", "pods");
        let named = || get().named("web");
        let rows = [
            (rule(&["apps"], &["deployments"], &[], &["get"]), vec![get(), named()]),
            (rule(&["apps"], &["deployments"], &[], &["list", "watch"]), vec![]),
            (rule(&["apps"], &["statefulsets"], &[], &["get"]), vec![]),
            (rule(&["batch"], &["deployments"], &[], &["get"]), vec![]),
            (rule(&[""], &["pods"], &[], &["get"]), vec![core()]),
            (rule(&["apps"], &["deployments/status"], &[], &["get"]), vec![status()]),
            (rule(&["apps"], &["*/scale"], &[], &["get"]), vec![scale()]),
            (rule(&["apps"], &["*/*"], &[], &["get"]), vec![]),
            (rule(&["apps"], &["deployments/*"], &[], &["get"]), vec![]),
            (rule(&["apps"], &["*"], &[], &["get"]), vec![get(), status(), scale(), named()]),
            (rule(&["*"], &["deployments", "pods"], &[], &["*"]), vec![get(), core(), named()]),
            (rule(&["*"], &["*"], &[], &["*"]), vec![get(), status(), scale(), core(), named()]),
            (rule(&["apps"], &["deployments"], &["web"], &["get"]), vec![named()]),
            (rule(&["apps"], &["deployments"], &["db", "web"], &["get"]), vec![named()]),
            (rule(&["apps"], &["deployments"], &["*"], &["get"]), vec![]),
            (rule(&[], &["*"], &[], &["*"]), vec![]),
        ];
        for (rule, granted) in rows {
            let rules = [serde_json::from_value(rule.clone()).unwrap()];
            let all = [get(), status(), scale(), core(), named()];
            let found: Vec<_> = all.into_iter().filter(|access| grants(&rules, access)).collect();
            assert_eq!(found, granted, "{rule}");
        }
    }

    #[test]
    fn what_is_denied_is_spelt_as_in_a_role() {
        let denied = [
            Access::new("list", "acme.io", "caches"),
            Access::new("watch", "acme.io", "caches"),
            Access::new("update", "acme.io", "caches/status"),
            Access::new("create", "", "secrets"),
            Access::new("bind", "rbac.authorization.k8s.io", "clusterroles").named("admin"),
        ];
        assert_eq!(
            Obstacle::Denied { account: None, access: denied.into() }.to_string(),
            "not allowed to create secrets; list, watch caches in API group acme.io; \
             update caches/status in API group acme.io; bind clusterroles admin in API group rbac.authorization.k8s.io: \
             `leasehold rbac` prints the rules that the configured kinds need, deploy/kinds.yaml holds those of the shipped ones"
        );
    }

    /// An API server as far as a preflight sees it, and what it was asked.
    #[derive(Clone)]
    struct Server(Arc<Mutex<World>>);

    struct World {
        /// Kinds by path of their API version.
        served: BTreeMap<&'static str, Vec<&'static str>>,
        rules: Vec<Value>,
        incomplete: bool,
        /// ServiceAccounts that are there, with their rules; the replica may not act as the last one.
        accounts: Vec<(&'static str, Vec<Value>)>,
        /// What access reviews allow.
        allowed: Vec<&'static str>,
        /// What begins so is never answered.
        silent: Option<&'static str>,
        began: Instant,
        /// When each request came, in seconds, and its path; of reviews what they ask about.
        log: Vec<(f64, String)>,
    }

    impl Server {
        /// Serves two kinds of one group, one of another and Pods, and allows all of it.
        fn new() -> Self {
            let served = [
                ("/apis/a.io/v1", vec!["Apple", "Avocado"]),
                ("/apis/b.io/v1", vec!["Berry"]),
                ("/api/v1", vec!["Pod"]),
            ];
            Self(Arc::new(Mutex::new(World {
                served: served.into(),
                rules: vec![rule(&["*"], &["*"], &[], &["*"])],
                incomplete: false,
                accounts: Vec::new(),
                allowed: Vec::new(),
                silent: None,
                began: now(),
                log: Vec::new(),
            })))
        }

        fn world(&self) -> MutexGuard<'_, World> {
            self.0.lock().unwrap()
        }

        fn client(&self) -> Client {
            self.client_of(None)
        }

        fn client_of(&self, account: Option<&'static str>) -> Client {
            let server = self.clone();
            let answer = move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect_bytes().await.unwrap_or_default();
                    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                    let silent = server.world().silent;
                    if silent.is_some_and(|path| head.uri.path().starts_with(path)) {
                        std::future::pending::<()>().await;
                    }
                    let (code, answer) = server.world().answer(account, head.uri.path(), &body);
                    let body = Body::from(answer.to_string().into_bytes());
                    Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
                }
            };
            Client::new(tower::service_fn(answer), "default")
        }

        /// What was asked since the last call, without the times.
        fn asked(&self) -> Vec<String> {
            let mut asked: Vec<_> = std::mem::take(&mut self.world().log).into_iter().map(|(_, path)| path).collect();
            asked.sort();
            asked
        }
    }

    impl World {
        fn answer(&mut self, account: Option<&str>, path: &str, body: &Value) -> (u16, Value) {
            let at = now().duration_since(self.began).as_secs_f64();
            if let Some(name) = path.strip_prefix("/api/v1/namespaces/ns/serviceaccounts/") {
                self.log.push((at, format!("account {name}")));
                let is_there = self.accounts.iter().any(|(account, _)| *account == name);
                let found = json!({"metadata": {"name": name}});
                return if is_there { (200, found) } else { (404, json!({"code": 404, "reason": "NotFound"})) };
            }
            if account.is_some() && self.accounts.last().map(|(name, _)| *name) == account {
                let details = json!({"kind": "serviceaccounts", "name": account});
                return (403, json!({"code": 403, "reason": "Forbidden", "status": "Failure", "details": details}));
            }
            let of_account = self.accounts.iter().find(|(name, _)| Some(*name) == account).map(|(_, rules)| rules);
            if path.ends_with("/selfsubjectrulesreviews") {
                let rules = of_account.unwrap_or(&self.rules);
                self.log.push((at, format!("rules of {}", body["spec"]["namespace"].as_str().unwrap())));
                let status = json!({"resourceRules": rules, "nonResourceRules": [], "incomplete": self.incomplete});
                return (201, json!({"metadata": {}, "spec": {}, "status": status}));
            }
            if path.ends_with("/selfsubjectaccessreviews") {
                let of = &body["spec"]["resourceAttributes"];
                let text = |field: &str| of[field].as_str().unwrap_or_default().to_owned();
                let slash = if of["subresource"].is_null() { "" } else { "/" };
                let access = format!("{} {}{slash}{}", text("verb"), text("resource"), text("subresource"));
                self.log.push((at, access.clone()));
                let allowed = self.allowed.contains(&access.as_str());
                return (201, json!({"metadata": {}, "spec": {}, "status": {"allowed": allowed}}));
            }
            self.log.push((at, path.to_owned()));
            let Some(kinds) = self.served.get(path) else {
                return (
                    404,
                    json!({"code": 404, "message": "404 page not found", "reason": "NotFound", "status": "Failure"}),
                );
            };
            let resource = |kind: &&str, part: &str| {
                let name = format!("{}s{part}", kind.to_lowercase());
                json!({"kind": kind, "name": name, "namespaced": true, "singularName": "", "verbs": []})
            };
            // A subresource of the same kind comes first, to be passed over.
            let resources: Vec<_> =
                kinds.iter().flat_map(|kind| [resource(kind, "/status"), resource(kind, "")]).collect();
            (200, json!({"groupVersion": path.rsplit_once("api").unwrap().1, "resources": resources}))
        }
    }

    fn subject(group: &str, kind: &str, needs: &[Access]) -> Subject {
        Subject { kind: Arc::new(Kind::new(group, "v1", kind)), needs: needs.to_vec(), account: None }
    }

    fn fruit() -> Vec<Subject> {
        let status = Access::new("patch", "a.io", "apples/status");
        vec![subject("a.io", "Apple", &[status]), subject("a.io", "Avocado", &[]), subject("b.io", "Berry", &[])]
    }

    #[test]
    fn what_a_kind_needs_of_itself_is_asked_for_by_the_plural_that_is_served() {
        let kind = subject("a.io", "Redis", &[]).kind;
        let served = Served { api: "/apis/a.io/v1".to_owned(), plural: "redis".to_owned(), namespaced: true };
        for (group, resource, expected) in [
            ("a.io", "redises", "redis"),
            ("a.io", "redises/status", "redis/status"),
            ("b.io", "redises", "redises"),
            ("a.io", "apples", "apples"),
        ] {
            let access = as_served(&Access::new("get", group, resource), &kind, &served);
            assert_eq!(access, Access::new("get", group, expected));
        }
    }

    fn runnable(api: &str, plural: &str) -> Verdict {
        Verdict::Runnable(Served { api: api.to_owned(), plural: plural.to_owned(), namespaced: true })
    }

    fn denied(all: &[Access]) -> Verdict {
        Verdict::Blocked(Obstacle::Denied { account: None, access: all.iter().cloned().collect() })
    }

    fn unserved(group: &str, kind: &str) -> Verdict {
        Verdict::Blocked(Obstacle::NotServed { api_version: format!("{group}/v1"), kind: kind.to_owned() })
    }

    /// Verdicts as they come, the last one of each kind.
    struct Heard(mpsc::UnboundedReceiver<(usize, Verdict)>);

    impl Heard {
        async fn within(&mut self, time: f64) -> BTreeMap<usize, Verdict> {
            sleep(Duration::from_secs_f64(time)).await;
            let mut heard = BTreeMap::new();
            while let Ok((kind, verdict)) = self.0.try_recv() {
                heard.insert(kind, verdict);
            }
            heard
        }
    }

    async fn play(server: &Server, kinds: Vec<Subject>, play: impl AsyncFnOnce(Ask, Heard)) {
        let (send, receive) = mpsc::unbounded_channel();
        let (preflight, ask) = Preflight::new(server.client(), BTreeMap::new(), kinds, send);
        tokio::select! {
            () = preflight.run() => unreachable!("its verdicts are heard"),
            () = play(ask, Heard(receive)) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_costs_a_discovery_an_api_version_and_one_review() {
        let server = Server::new();
        let kinds = [fruit(), vec![subject("", "Pod", &[Access::new("delete", "", "pods")])]].concat();
        play(&server, kinds, async |_, mut heard| {
            let verdicts = heard.within(0.5).await.into_values().collect::<Vec<_>>();
            let expected = [
                runnable("/apis/a.io/v1", "apples"),
                runnable("/apis/a.io/v1", "avocados"),
                runnable("/apis/b.io/v1", "berrys"),
                runnable("/api/v1", "pods"),
            ];
            assert_eq!(verdicts, expected);
            let Verdict::Runnable(pods) = &verdicts[3] else { panic!("{verdicts:?}") };
            assert_eq!(pods.path(), "/api/v1/pods");
            let look = ["/api/v1", "/apis/a.io/v1", "/apis/b.io/v1", "rules of cluster.leasehold.dev"];
            assert_eq!(server.asked(), look);
            assert_eq!(heard.within(239.0).await, BTreeMap::new(), "all is well");
            assert_eq!(heard.within(125.0).await.len(), 4);
            assert_eq!(server.asked(), look, "and once every five minutes");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_rules_do_not_grant_is_asked_for_one_by_one() {
        let server = Server::new();
        server.world().rules = vec![rule(&["a.io", "b.io"], &["apples", "berrys"], &[], &["list", "watch"])];
        server.world().allowed = vec!["list avocados", "watch avocados"];
        play(&server, fruit(), async |_, mut heard| {
            let patch = Access::new("patch", "a.io", "apples/status");
            let verdicts = heard.within(0.5).await.into_values().collect::<Vec<_>>();
            let avocado = runnable("/apis/a.io/v1", "avocados");
            assert_eq!(verdicts, [denied(&[patch]), avocado, runnable("/apis/b.io/v1", "berrys")]);
            let reviews = ["list avocados", "patch apples/status", "watch avocados"];
            assert_eq!(
                server.asked()[2..],
                ["list avocados", "patch apples/status", "rules of cluster.leasehold.dev", "watch avocados"]
            );
            drop(heard.within(1.0).await);
            assert_eq!(server.asked(), ["/apis/a.io/v1", "rules of cluster.leasehold.dev"], "the rules are complete");
            server.world().incomplete = true;
            drop(heard.within(2.5).await);
            let again = server.asked();
            assert!(again.contains(&reviews[1].to_owned()), "something else may grant it by now: {again:?}");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_kind_is_looked_at_every_few_seconds_and_the_others_are_not() {
        let server = Server::new();
        server.world().served.remove("/apis/b.io/v1");
        play(&server, fruit(), async |_, mut heard| {
            assert_eq!(heard.within(0.5).await[&2], unserved("b.io", "Berry"));
            server.world().log.clear();
            let verdicts = heard.within(29.5).await;
            assert_eq!(verdicts, [(2, unserved("b.io", "Berry"))].into());
            let log = std::mem::take(&mut server.world().log);
            assert!(log.iter().all(|(_, path)| path == "/apis/b.io/v1" || path.starts_with("rules")), "{log:?}");
            let looks: Vec<_> = log.iter().filter(|(_, path)| path.starts_with("/apis")).map(|(at, _)| *at).collect();
            let pauses: Vec<_> = [0.0].iter().chain(&looks).zip(&looks).map(|(one, next)| next - one).collect();
            for (pause, expected) in pauses.iter().zip([1.0, 2.0, 4.0, 5.0, 5.0, 5.0]) {
                assert!((0.8 * expected - 0.01..1.2 * expected + 0.01).contains(pause), "{pauses:?}");
            }
            assert!(pauses.len() >= 5, "{pauses:?}");
            server.world().served.insert("/apis/b.io/v1", vec!["Berry"]);
            assert_eq!(heard.within(6.1).await[&2], runnable("/apis/b.io/v1", "berrys"));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_met_an_error_is_looked_at_at_once_and_a_few_times_more() {
        let server = Server::new();
        play(&server, fruit(), async |ask, mut heard| {
            drop(heard.within(5.0).await);
            server.asked();
            ask.ask_again(2);
            assert_eq!(heard.within(0.1).await, [(2, runnable("/apis/b.io/v1", "berrys"))].into());
            assert_eq!(server.asked(), ["/apis/b.io/v1", "rules of cluster.leasehold.dev"]);
            // Discovery has shown for a moment what was gone.
            server.world().served.remove("/apis/b.io/v1");
            assert_eq!(heard.within(1.3).await, [(2, unserved("b.io", "Berry"))].into());
            server.world().served.insert("/apis/b.io/v1", vec!["Berry"]);
            assert_eq!(heard.within(6.1).await[&2], runnable("/apis/b.io/v1", "berrys"));
            drop(heard.within(20.0).await);
            server.asked();
            for _ in 0..90 {
                ask.ask_again(0);
                ask.ask_again(1);
                sleep(Duration::from_millis(20)).await;
            }
            // One that was asked for each second, and perhaps the first that follows one anyway.
            let asked = server.asked().len();
            assert!(matches!(asked, 4 | 6), "{asked}: looks in two seconds, at both kinds together");
            drop(heard.within(20.0).await);
            server.asked();
            // All are looked at again after 240 s at the earliest, and 54 have passed.
            assert_eq!(heard.within(180.0).await, BTreeMap::new(), "the doubts have passed");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_is_judged_by_what_its_account_may_do_and_a_bad_account_blocks_no_other_kind() {
        let server = Server::new();
        let account = |name: &str| Account { namespace: "ns".to_owned(), name: name.to_owned() };
        let read = rule(&["a.io"], &["apples", "avocados"], &[], &["list", "watch"]);
        server.world().accounts = vec![("apples", vec![read]), ("locked", Vec::new())];
        let mut kinds = fruit();
        kinds.push(subject("", "Pod", &[]));
        for (kind, name) in kinds.iter_mut().zip(["apples", "gone", "locked"]) {
            kind.account = Some(account(name));
        }
        let acting = ["apples", "gone", "locked"].map(|name| (account(name), server.client_of(Some(name))));
        let (send, receive) = mpsc::unbounded_channel();
        let (preflight, _ask) = Preflight::new(server.client(), acting.into(), kinds, send);
        let mut heard = Heard(receive);
        let steps = async {
            let missing = [Access::new("patch", "a.io", "apples/status")].into();
            let expected = [
                (0, Verdict::Blocked(Obstacle::Denied { account: Some(account("apples")), access: missing })),
                (1, Verdict::Blocked(Obstacle::NoAccount(account("gone")))),
                (2, Verdict::Blocked(Obstacle::NotActing(account("locked")))),
                (3, runnable("/api/v1", "pods")),
            ];
            assert_eq!(heard.within(0.5).await, expected.into());
            // Mended, each is led without a restart.
            let all = || vec![rule(&["*"], &["*"], &[], &["*"])];
            server.world().accounts =
                vec![("apples", all()), ("gone", all()), ("locked", all()), ("other", Vec::new())];
            let heard = heard.within(2.0).await;
            assert!((0..3).all(|kind| matches!(heard[&kind], Verdict::Runnable(_))), "{heard:?}");
        };
        tokio::select! {
            () = preflight.run() => unreachable!("its verdicts are heard"),
            () = steps => {}
        }
        let of =
            |account: Option<Account>| Obstacle::Denied { account, access: [Access::new("get", "", "pods")].into() };
        assert!(
            of(Some(account("apples"))).to_string().starts_with("ServiceAccount ns/apples is not allowed to get pods")
        );
        assert!(of(None).to_string().starts_with("not allowed to get pods"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_more_than_rules_that_are_not_all() {
        let server = Server::new();
        server.world().incomplete = true;
        play(&server, fruit(), async |ask, mut heard| {
            assert_eq!(heard.within(5.0).await[&2], runnable("/apis/b.io/v1", "berrys"));
            ask.ask_again(2);
            let refused = ["list", "watch"].map(|verb| Access::new(verb, "b.io", "berrys"));
            assert_eq!(heard.within(0.1).await[&2], denied(&refused));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_answered_stays_open_and_delays_no_other() {
        let server = Server::new();
        server.world().silent = Some("/apis/b.io");
        play(&server, fruit(), async |_, mut heard| {
            assert_eq!(heard.within(0.1).await.into_keys().collect::<Vec<_>>(), [0, 1]);
            let error = "no answer within 10 s".to_owned();
            let open = Verdict::Unknown(Unanswered::Discovery { api_version: "b.io/v1".to_owned(), error });
            assert_eq!(heard.within(10.0).await, [(2, open)].into());
            server.world().silent = Some("/apis/authorization.k8s.io");
            let error = "no answer within 10 s".to_owned();
            assert_eq!(heard.within(11.3).await, [(2, Verdict::Unknown(Unanswered::Permissions(error)))].into());
            server.world().silent = None;
            assert_eq!(heard.within(2.5).await[&2], runnable("/apis/b.io/v1", "berrys"));
        })
        .await;
    }

    #[test]
    fn no_namespace_can_have_the_name_that_rules_are_reviewed_for() {
        assert!(NO_NAMESPACE.contains('.'), "a namespace's name is a DNS label");
    }
}
