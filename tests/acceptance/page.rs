//! The page at `/` of every replica: in a real browser, and by what it is fed with.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use kube::ResourceExt;
use leasehold::ops::{
    http,
    metrics::Metrics,
    status::{ShardState, Status, Takeover},
    timeline::Source,
};
use leasehold_cluster::{Fault, Rule, Signal, eventually};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    browser::{Browser, ENTER, LEFT, MISSING, RIGHT, TAB},
    lone::{Lone, Plan, Program, observer},
    stage::{PATIENCE, Stage, ensure, lease_of, name_of, play, pod_of, tell},
    things::now,
};

/// Where the page of a Pod is.
async fn page_of(stage: &Stage, pod: &str) -> Result<String> {
    let address = || async {
        let pods = stage.pods().await?;
        let found = pods.into_iter().find(|it| it.name_any() == pod).context("the Pod is there")?;
        anyhow::Ok(found.status.and_then(|status| status.pod_ip))
    };
    let address = eventually("the Pod has an address", PATIENCE, address, Option::is_some).await?;
    let address: IpAddr = address.context("an address")?.parse()?;
    Ok(format!("http://{address}:8080/"))
}

/// An answer of an endpoint.
async fn get(url: &str) -> Result<(u16, String)> {
    let (authority, path) = url.trim_start_matches("http://").split_once('/').context("a path")?;
    let asking = async {
        let mut stream = TcpStream::connect(authority).await?;
        stream.write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status")?;
        Ok((code, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned()))
    };
    timeout(Duration::from_secs(5), asking).await.context("no answer")?
}

/// All that a page shows, with the time at which it was sent as `at`, on the scale of the takeovers.
async fn data(page: &str) -> Result<Value> {
    let mut sent: Value = serde_json::from_str(&get(&format!("{page}page/data")).await?.1)?;
    let mut whole = sent["whole"].take();
    whole["at"] = sent["at"].take();
    Ok(whole)
}

fn takeovers(shown: &Value, kind: &str) -> Vec<Value> {
    shown["lanes"][lease_of(kind)]["takeovers"].as_array().cloned().unwrap_or_default()
}

/// Asks for a kind to be at a Pod, as `leasehold hand-over` does, and waits until it is. The order stands, so that nothing moves
/// the kind back.
async fn hand_over(stage: &Stage, kind: &str, pod: &str) -> Result<()> {
    let order = format!("leasehold.dev/hand-over-to={pod}");
    let lease = lease_of(kind);
    stage.cluster.kubectl(&["annotate", "--overwrite", "lease", &lease, "-n", &stage.namespace, &order]).await?;
    stage.held(kind, |holder| pod_of(holder) == pod).await?;
    Ok(())
}

async fn take_order_back(stage: &Stage, kind: &str) -> Result<()> {
    let lease = lease_of(kind);
    let order = "leasehold.dev/hand-over-to-";
    stage.cluster.kubectl(&["annotate", "lease", &lease, "-n", &stage.namespace, order]).await?;
    Ok(())
}

/// Where pictures of the page are kept.
fn pictures() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_leasehold")).ancestors().nth(2).context("the target folder")?;
    Ok(target.join("page"))
}

async fn set(name: &str, kinds: usize) -> Result<Stage> {
    let mut stage = Stage::set(name, kinds).await?;
    stage.stubborn = false;
    stage.let_events_be_written().await?;
    Ok(stage)
}

/// Weights that make a picture.
fn weighted(stage: &Stage, first: u32) -> Vec<(&str, u32)> {
    let weights = [first, 3, 2, 2, 1, 1];
    stage.kinds.iter().map(String::as_str).zip(weights).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_installation_in_a_browser_and_goes_on_during_a_rollout() -> Result<()> {
    let Some(browser) = Browser::open().await? else {
        tell(MISSING);
        return Ok(());
    };
    let mut stage = set("page", 6).await?;
    // A stranger writes a Lease.
    stage.judged = false;
    play(stage, |stage| async move {
        stage.apply(3, &weighted(stage, 4)).await?;
        stage.all_led().await?;
        let holders = stage.holders().await?;
        let pod = pod_of(&holders[&lease_of(&stage.kinds[0])]).to_owned();
        let page = page_of(stage, &pod).await?;
        browser.width(1280, false).await?;
        browser.goto(&page).await?;
        all_is_shown(stage, &browser).await?;
        a_handover_is_seen(stage, &browser).await?;
        names_are_text(stage, &browser).await?;
        it_is_used_by_keyboard(&browser).await?;
        every_control_has_a_name(&browser).await?;
        it_can_be_read_in_both_schemes(&browser).await?;
        it_fits_on_a_phone(&browser).await?;
        ensure_quiet(&browser, &[&page]).await?;
        a_rollout_is_seen(stage, &browser, &page).await?;
        browser.close().await
    })
    .await;
    Ok(())
}

async fn all_is_shown(stage: &Stage, browser: &Browser) -> Result<()> {
    let figures = "document.getElementById('figures').innerText.replace(/\\s+/g, ' ')";
    browser.sees("all kinds are led", &format!("{figures}.includes('Kinds led 6 of 6')")).await?;
    browser.sees("all replicas are ready", &format!("{figures}.includes('Replicas ready 3 of 3')")).await?;
    browser.sees("it is live", "document.getElementById('live').innerText.includes('Live')").await?;
    browser.sees("nothing is wrong", "document.getElementById('attention').hidden").await?;
    for (lease, holder) in stage.holders().await? {
        let kind = stage.kinds.iter().find(|kind| lease_of(kind) == lease).context("a kind")?;
        let (kind, pod) = (name_of(kind), pod_of(&holder));
        let short = kind.split('.').next().context("a name")?;
        let row = format!(
            "[...document.querySelectorAll('#kinds-body tr')].some((row) => row.innerText.includes('{short}') && row.querySelector('.leader')?.title === '{pod}')"
        );
        browser.sees(&format!("{kind} is led by {pod}"), &row).await?;
        let block = format!(
            "[...document.querySelectorAll('#spread-picture .holder')].some((row) => row.innerText.includes('{pod}') && [...row.querySelectorAll('.block')].some((block) => block.title.startsWith('{kind}:')))"
        );
        browser.sees(&format!("the picture has {kind} at {pod}"), &block).await?;
        let said = format!("document.getElementById('spread-picture').getAttribute('aria-label').includes('{short}')");
        browser.sees("the picture is also said", &said).await?;
    }
    let lanes = "document.querySelectorAll('#lanes .lane .seg').length >= 6";
    browser.sees("each kind has a lane", lanes).await
}

/// On the page that is open: nothing is loaded again.
async fn a_handover_is_seen(stage: &Stage, browser: &Browser) -> Result<()> {
    browser.run("window.isTheSame = true;").await?;
    let moved = &stage.kinds[5];
    let from = stage.holders().await?[&lease_of(moved)].clone();
    let to = stage.pods().await?.iter().map(ResourceExt::name_any).find(|pod| pod != pod_of(&from)).context("a Pod")?;
    hand_over(stage, moved, &to).await?;
    let began = now();
    let short = name_of(moved).split('.').next().unwrap_or_default().to_owned();
    let row = format!(
        "window.isTheSame && [...document.querySelectorAll('#kinds-body tr')].some((row) => row.innerText.includes('{short}') && row.querySelector('.leader')?.title === '{to}' && row.innerText.includes('HandedOver'))"
    );
    browser.sees("the handover is on the page", &row).await?;
    tell(&format!("a handover was on the page {:?} after it was seen here", began.elapsed()));
    browser.sees("it has a mark", "document.querySelectorAll('#lanes .mark.handover').length >= 1").await?;
    browser.run("document.getElementById('takeovers').open = true;").await?;
    let table = format!(
        "[...document.querySelectorAll('#takeovers-body tr')].some((row) => row.innerText.includes('{short}') && row.innerText.includes('HandedOver'))"
    );
    browser.sees("the table has it as well", &table).await?;
    browser.run("document.getElementById('takeovers').open = false;").await?;
    take_order_back(stage, moved).await
}

/// A stranger's name is of whatever it likes.
async fn names_are_text(stage: &Stage, browser: &Browser) -> Result<()> {
    let kind = &stage.kinds[4];
    let name = "<img src=x onerror=alert(1)>";
    let holder = json!({"spec": {"holderIdentity": name, "leaseDurationSeconds": 30}}).to_string();
    let lease = lease_of(kind);
    let patch = ["patch", "lease", &lease, "-n", &stage.namespace, "--type=merge", "-p", &holder];
    stage.cluster.kubectl(&patch).await?;
    let shown = format!(
        "document.getElementById('attention').innerText.includes('is no replica of this installation') && [...document.querySelectorAll('#kinds-body tr')].some((row) => row.querySelector('.leader')?.title === '{name}')"
    );
    browser.sees("the stranger is named", &shown).await?;
    let images = browser.run("return document.querySelectorAll('img').length;").await?;
    ensure(images == json!(1), || format!("{images} images: a name became one"))?;
    let free = json!({"spec": {"holderIdentity": "", "leaseDurationSeconds": 1}}).to_string();
    stage.cluster.kubectl(&["patch", "lease", &lease, "-n", &stage.namespace, "--type=merge", "-p", &free]).await?;
    browser.sees("it is led again", "document.getElementById('attention').hidden").await
}

async fn focused(browser: &Browser) -> Result<String> {
    let script = "const it = document.activeElement; return it.id || it.name || it.textContent.trim();";
    Ok(browser.run(script).await?.as_str().unwrap_or_default().to_owned())
}

async fn it_is_used_by_keyboard(browser: &Browser) -> Result<()> {
    browser.run("document.activeElement.blur(); window.scrollTo(0, 0);").await?;
    let mut order = Vec::new();
    for _ in 0..8 {
        browser.press(TAB).await?;
        order.push(focused(browser).await?);
    }
    let expected =
        ["Skip to the kinds", "range", "takeovers-summary", "filter", "sort", "/shards", "/metrics", "/page/data"];
    ensure(order == expected, || format!("Tab goes through {order:?}"))?;
    let to = async |element: &str| browser.run(&format!("document.{element}.focus();")).await;
    to("querySelector('.skip')").await?;
    browser
        .sees(
            "the link is seen when it has the focus",
            "document.querySelector('.skip').getBoundingClientRect().left >= 0",
        )
        .await?;
    browser.press(ENTER).await?;
    browser.sees("the link leads to the kinds", "document.activeElement.id === 'kinds'").await?;
    to("querySelector('input[name=range]:checked')").await?;
    browser.press(RIGHT).await?;
    browser.sees("an arrow chooses the range", "document.querySelector('input[name=range]:checked').value === '21600000' && document.getElementById('timeline-note').innerText.startsWith('Last 6 h')").await?;
    browser.press(LEFT).await?;
    to("getElementById('takeovers-summary')").await?;
    browser.press(ENTER).await?;
    browser
        .sees(
            "Enter opens the table",
            "document.getElementById('takeovers').open && document.querySelectorAll('#takeovers-body tr').length > 0",
        )
        .await?;
    browser.press(ENTER).await?;
    to("getElementById('filter')").await?;
    browser.press("x0.").await?;
    browser.sees("the filter leaves one kind", "document.querySelectorAll('#kinds-body tr').length === 1 && document.getElementById('kinds-note').innerText === '1 of 6 kinds'").await?;
    browser
        .run("const it = document.getElementById('filter'); it.value = ''; it.dispatchEvent(new Event('input'));")
        .await?;
    browser.sees("all kinds are back", "document.querySelectorAll('#kinds-body tr').length === 6").await
}

/// As a screen reader has it.
async fn every_control_has_a_name(browser: &Browser) -> Result<()> {
    let tree = browser.devtools("Accessibility.getFullAXTree", json!({})).await?;
    let nodes: Vec<&Value> =
        tree["nodes"].as_array().context("nodes")?.iter().filter(|it| it["ignored"] != true).collect();
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
    let of = |wanted: &[&str]| nodes.iter().filter(|it| wanted.contains(&role(it).as_str())).collect::<Vec<_>>();
    let named = [
        "button",
        "link",
        "radio",
        "searchbox",
        "textbox",
        "combobox",
        "DisclosureTriangle",
        "table",
        "img",
        "image",
        "region",
        "group",
        "navigation",
    ];
    let all = of(&named);
    ensure(all.len() > 20, || format!("{} are few", all.len()))?;
    for node in all {
        let name = node["name"]["value"].as_str().unwrap_or_default();
        // The sign of this program is beside its name.
        ensure(!name.trim().is_empty(), || format!("no name: {node}"))?;
    }
    for landmark in ["banner", "main", "contentinfo", "navigation"] {
        ensure(!of(&[landmark]).is_empty(), || format!("there is no {landmark}"))?;
    }
    let levels = browser
        .run("return [...document.querySelectorAll('h1, h2, h3, h4')].map((it) => Number(it.tagName[1]));")
        .await?;
    let levels: Vec<u64> = levels.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let in_order = levels.first() == Some(&1) && levels.windows(2).all(|two| two[1] <= two[0] + 1);
    ensure(in_order && levels.iter().filter(|level| **level == 1).count() == 1, || format!("headings {levels:?}"))?;
    let language = browser.run("return document.documentElement.lang;").await?;
    ensure(language == "en", || format!("{language}"))
}

/// The least contrast of a text to its ground, and which text has it.
const CONTRAST: &str = "
const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
const parsed = (colour) => colour.match(/[\\d.]+/g).map(Number);
const ground = (node) => {
  for (let it = node; it; it = it.parentElement) {
    const colour = parsed(getComputedStyle(it).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
let least = [99, ''];
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const node = texts.currentNode.parentElement;
  if (!texts.currentNode.textContent.trim() || ['NOSCRIPT', 'OPTION', 'SCRIPT'].includes(node.tagName) || !node.checkVisibility()) continue;
  const [one, other] = [luminance(parsed(getComputedStyle(node).color)), luminance(ground(node))];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  if (contrast < least[0]) least = [contrast, `${node.tagName} ${node.className}: ${texts.currentNode.textContent}`];
}
return least;";

async fn it_can_be_read_in_both_schemes(browser: &Browser) -> Result<()> {
    let mut grounds = Vec::new();
    for (dark, file) in [(false, "light.png"), (true, "dark.png")] {
        browser.dark(dark).await?;
        browser.run("document.activeElement.blur(); window.scrollTo(0, 0);").await?;
        grounds.push(browser.run("return getComputedStyle(document.documentElement).backgroundColor;").await?);
        let least = browser.run(CONTRAST).await?;
        ensure(least[0].as_f64() >= Some(4.5), || format!("dark {dark}: a contrast of {least}"))?;
        let file = pictures()?.join(file);
        browser.screenshot(1280, &file).await?;
        tell(&format!("a picture of the page is at {}; the least contrast is {least}", file.display()));
    }
    ensure(grounds[0] != grounds[1], || format!("both schemes have the ground {grounds:?}"))?;
    browser.dark(false).await
}

async fn it_fits_on_a_phone(browser: &Browser) -> Result<()> {
    for width in [320, 375, 768, 1024] {
        browser.width(width, width < 500).await?;
        let wide = "const wide = [...document.querySelectorAll('body *')].filter((it) => it.checkVisibility() && !it.closest('.hidden, .skip, thead') && it.getBoundingClientRect().right > innerWidth + 1);
            return [document.documentElement.scrollWidth, innerWidth, wide.map((it) => `${it.tagName} ${it.className}`).slice(0, 5)];";
        let seen = browser.run(wide).await?;
        ensure(seen[0].as_u64() <= seen[1].as_u64() && seen[2] == json!([]), || format!("at {width}: {seen}"))?;
    }
    browser.width(375, true).await?;
    let file = pictures()?.join("phone.png");
    browser.screenshot(375, &file).await?;
    browser.width(1280, false).await
}

/// Nothing is said on the console, and nothing is asked for but from the replicas whose page was opened.
async fn ensure_quiet(browser: &Browser, pages: &[&str]) -> Result<()> {
    // That a replica has gone whose page is open, the browser says of itself.
    let is_gone = |it: &Value| it.to_string().contains("/page/events - Failed to load resource: net::ERR_");
    let said: Vec<_> = browser.console().await?.into_iter().map(|it| json!(it)).filter(|it| !is_gone(it)).collect();
    ensure(said.is_empty(), || format!("the console says {said:?}"))?;
    let asked = browser.requests().await?;
    ensure(asked.iter().any(|url| url.ends_with("/page/events")), || format!("{asked:?}"))?;
    let elsewhere: Vec<_> = asked.iter().filter(|url| !pages.iter().any(|page| url.starts_with(page))).collect();
    // A browser opens with a page of its own, which is made of its own parts.
    let is_its_own = |url: &str| ["data:", "chrome:", "chrome-untrusted:"].iter().any(|it| url.starts_with(it));
    let elsewhere: Vec<_> = elsewhere.into_iter().filter(|url| !is_its_own(url)).collect();
    ensure(elsewhere.is_empty(), || format!("the page asks elsewhere: {elsewhere:?}"))
}

/// Two generations side by side; then the Pod whose page is open goes, and the page says so. The page of a new Pod has the past.
async fn a_rollout_is_seen(stage: &Stage, browser: &Browser, page: &str) -> Result<()> {
    let before = stage.pods().await?;
    let old: Vec<_> = before.iter().map(ResourceExt::name_any).collect();
    browser.run("window.wasOld = false; new MutationObserver(() => { window.wasOld ||= Boolean(document.querySelector('#spread-picture .chip.old')); }).observe(document.body, {subtree: true, childList: true});").await?;
    stage.apply(3, &weighted(stage, 5)).await?;
    browser
        .sees("two generations are told apart, on the page that was open", "window.isTheSame && window.wasOld")
        .await?;
    let all_new = |pods: &Vec<k8s_openapi::api::core::v1::Pod>| {
        pods.len() == 3 && pods.iter().all(|pod| !old.contains(&pod.name_any()))
    };
    let pods = eventually("the rollout ends", PATIENCE, || stage.pods(), all_new).await?;
    browser
        .sees(
            "a page whose replica has gone says so",
            "document.getElementById('live').innerText.includes('Not connected')",
        )
        .await?;
    // What a browser says of a server that has gone is no fault of the page.
    browser.console().await?;
    browser.requests().await?;
    stage.all_led().await?;
    let next = page_of(stage, &pods[0].name_any()).await?;
    ensure(next != page, || "another Pod".to_owned())?;
    browser.goto(&next).await?;
    let past = "[...document.querySelectorAll('#lanes .mark.handover')].length >= 6 && document.querySelectorAll('#lanes .seg.past').length >= 1";
    browser.sees("it shows what was before it was there", past).await?;
    browser.screenshot(1280, &pictures()?.join("after-a-rollout.png")).await?;
    browser.width(1280, false).await?;
    // The old page may have asked once more for the replica that has gone.
    ensure_quiet(browser, &[page, &next]).await
}

/// By what the page is fed with: what a replica has not seen, its peers tell it; when all have gone, the events do.
#[tokio::test(flavor = "multi_thread")]
async fn every_replica_has_the_history_also_when_all_were_restarted() -> Result<()> {
    let stage = set("history", 2).await?;
    play(stage, |stage| async move {
        stage.replicas(2).await?;
        stage.all_led().await?;
        let kind = &stage.kinds[0];
        let first = stage.holders().await?[&lease_of(kind)].clone();
        let other = stage.pods().await?.iter().map(ResourceExt::name_any).find(|pod| pod != pod_of(&first));
        let other = other.context("another Pod")?;
        hand_over(stage, kind, &other).await?;
        let has = |shown: &Value, from: &str, to: &str, reason: &str| {
            takeovers(shown, kind).iter().any(|step| {
                let is = |end: &str, pod: &str| step[end].as_str().is_some_and(|identity| pod_of(identity) == pod);
                is("from", from) && is("to", to) && step["reason"] == reason
            })
        };
        let (first, second) = (pod_of(&first), other.as_str());
        for pod in [first, second] {
            let page = page_of(stage, pod).await?;
            let known = |shown: &Value| has(shown, first, second, "HandedOver");
            eventually("each has seen it", PATIENCE, || data(&page), known).await?;
        }

        // A third one was not there.
        stage.apply(3, &stage.kinds.iter().map(|kind| (kind.as_str(), 1)).collect::<Vec<_>>()).await?;
        let pods = eventually("a third one runs", PATIENCE, || stage.pods(), |pods| pods.len() == 3).await?;
        let third =
            pods.iter().map(ResourceExt::name_any).find(|pod| pod != first && pod != second).context("a third")?;
        let page = page_of(stage, &third).await?;
        eventually("it is told", PATIENCE, || data(&page), |shown| has(shown, first, second, "HandedOver")).await?;
        take_order_back(stage, kind).await?;

        // One that is silent is named, and the rest is shown.
        let quiet = pods.iter().map(ResourceExt::name_any).find(|pod| *pod != third).context("another")?;
        stage.kubelet.signal(&stage.namespace, &quiet, Signal::STOP)?;
        let named = |shown: &Value| {
            shown["head"]["notReached"].to_string().contains(&format!("{quiet}: no answer within 1 s"))
                && shown["kinds"].as_object().is_some_and(|kinds| kinds.values().all(|row| row["verdict"] == "Led"))
        };
        eventually("the silence is named, and its kinds are led elsewhere", PATIENCE, || data(&page), named).await?;
        stage.kubelet.signal(&stage.namespace, &quiet, Signal::CONT)?;
        eventually("it is back", PATIENCE, || data(&page), |shown| shown["head"]["notReached"] == json!([])).await?;

        // All of them go, and with them what they knew.
        let none: Vec<(&str, u32)> = stage.kinds.iter().map(|kind| (kind.as_str(), 1)).collect();
        stage.apply(0, &none).await?;
        eventually("all are gone", PATIENCE, || stage.pods(), Vec::is_empty).await?;
        let gone = || async { anyhow::Ok(stage.holders().await?.len()) };
        eventually("every Lease is free", PATIENCE, gone, |held| *held == 0).await?;
        stage.apply(1, &none).await?;
        let pods = eventually("one runs", PATIENCE, || stage.pods(), |pods| pods.len() == 1).await?;
        let last = pods[0].name_any();
        let page = page_of(stage, &last).await?;
        let known = |shown: &Value| has(shown, first, second, "HandedOver");
        let shown = eventually("the events tell it", PATIENCE, || data(&page), known).await?;
        let told: Vec<_> = takeovers(&shown, kind);
        tell(&format!("by events: {}", Value::Array(told.clone())));
        let steps: Vec<_> = told.iter().filter_map(|step| step["at"].as_i64()).collect();
        let sent = shown["at"].as_i64().context("the page says when it was sent")?;
        ensure(steps.is_sorted() && steps.iter().all(|at| *at <= sent), || format!("at {sent}: {told:?}"))
    })
    .await;
    Ok(())
}

/// Without an API server, and among clients that take all there is: it answers, changes nothing, and delays no renewal.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_answers_in_time_whatever_its_clients_and_the_api_server_do() -> Result<()> {
    let stage = set("crowded", 1).await?;
    play(stage, |stage| async move {
        let folder = tempfile::tempdir()?;
        let config = observer(stage, folder.path(), "replica", "", "")?;
        let replica = Lone::start(stage, Plan::new(Program::Observer, "replica-0", &config)).await?;
        stage.all_led().await?;
        let page = format!("http://{}/", replica.address);
        let before = stage.audit()?.len();
        let term = replica.shard(&name_of(&stage.kinds[0])).await?["token"].clone();

        let mut open = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(&replica.address).await?;
            stream.write_all(b"GET /page/events HTTP/1.1\r\nhost: x\r\n\r\n").await?;
            open.push(stream);
        }
        let mut slowest = Duration::ZERO;
        let crowded = now();
        // Longer than the Lease: a renewal that was held up would have cost it.
        while crowded.elapsed() < Duration::from_secs(7) {
            let began = now();
            let (code, _) = get(&format!("{page}livez")).await?;
            ensure(code == 200, || format!("/livez answers {code}"))?;
            slowest = slowest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tell(&format!("among 100 clients the slowest answer of /livez took {slowest:?}"));
        let shard = replica.shard(&name_of(&stage.kinds[0])).await?;
        ensure(shard["token"] == term && shard["state"] == "Leading", || format!("{term}: {shard}"))?;
        ensure(shard["secondsSinceRenewal"].as_f64() < Some(2.0), || format!("{shard}"))?;
        drop(open);

        // The API server is away: what is known is shown still.
        replica.proxy.add(Rule::new(Fault::BlackHole));
        let silent = |shown: &Value| shown["head"]["unready"].is_string();
        let shown = eventually("it says that it does not see the Leases", PATIENCE, || data(&page), silent).await?;
        ensure(shown["lanes"][lease_of(&stage.kinds[0])]["takeovers"][0]["to"].is_string(), || format!("{shown}"))?;
        let began = now();
        let (code, _) = get(&page).await?;
        ensure(code == 200 && began.elapsed() < Duration::from_secs(2), || {
            format!("{code} after {:?}", began.elapsed())
        })?;
        replica.proxy.heal();
        replica.proxy.clear();
        stage.all_led().await?;

        // Whoever looks causes no request but those that there would have been.
        let audit = stage.audit()?;
        let odd: Vec<_> = audit[before.min(audit.len())..].iter().filter(|event| event.is_write()).collect();
        let odd: Vec<_> = odd
            .into_iter()
            .filter(|event| {
                !["leases", "events", crate::stage::plural(&stage.kinds[0]).as_str()]
                    .iter()
                    .any(|it| event.resource == **it)
            })
            .collect();
        ensure(odd.is_empty(), || format!("{odd:?}"))
    })
    .await;
    Ok(())
}

/// What a thousand kinds with three takeovers each come to: a replica of this process says that it leads them.
fn a_thousand(status: &Status) {
    const REPLICAS: u64 = 10;
    let (began, old) = (tokio::time::Instant::from_std(now()), Duration::from_secs(3000));
    status.update_replica(|replica| {
        replica.identity = "replica-0_1".to_owned();
        (replica.namespace, replica.instance) = ("platform".to_owned(), "many".to_owned());
        replica.unready = None;
    });
    for number in 0..1000 {
        let (kind, lease) = (format!("Kind{number:04}.example.com"), format!("kind{number:04}.example.com"));
        for turn in 0..3 {
            let takeover = Takeover {
                at: began.checked_sub(old / (turn + 1)).unwrap_or(began),
                from: Some(format!("replica-{}_1", (number + u64::from(turn)) % REPLICAS)),
                to: if turn == 2 {
                    "replica-0_1".to_owned()
                } else {
                    format!("replica-{}_1", (number + u64::from(turn) + 1) % REPLICAS)
                },
                token: format!("uid-{number}/{turn}"),
                reason: ("Balance".into(), "its holder handed it over for balance".into()),
                without_leader: Some(Duration::from_millis(7)),
            };
            status.timeline().add(began, &lease, Source::Seen, takeover);
        }
        status.update(&kind, |shard| {
            (shard.lease, shard.state, shard.weight) = (lease, ShardState::Leading, 1);
            shard.holder = Some("replica-0_1".to_owned());
            (shard.running, shard.leading_since) = (true, Some(began));
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_thousand_kinds_and_what_changes_of_them() -> Result<()> {
    let Some(browser) = Browser::open().await? else {
        tell(MISSING);
        return Ok(());
    };
    let status = Status::default();
    a_thousand(&status);
    let listener = http::bind("127.0.0.1:0".parse()?).await?;
    let page = format!("http://{}/", listener.local_addr()?);
    let metrics = Metrics::default();
    let router = http::router(status.clone(), metrics.clone());
    let server = http::serve(listener, router, http::Limits::default(), metrics, std::future::pending());
    let shown = async {
        browser.width(1280, false).await?;
        let began = now();
        browser.goto(&page).await?;
        browser.sees("each kind has a row", "document.querySelectorAll('#kinds-body tr').length === 1000").await?;
        browser.sees("each has a lane", "document.querySelectorAll('#lanes .lane').length === 1000").await?;
        tell(&format!("a thousand kinds were on the page {:?} after it was asked for", began.elapsed()));
        let bytes = get(&format!("{page}page/data")).await?.1.len();
        tell(&format!("they are {} KiB", bytes >> 10));
        // It stays usable while it is live: what changes is seen, and what is typed takes effect.
        status.update("Kind0500.example.com", |shard| {
            (shard.state, shard.reason) = (ShardState::Blocked, Some("its CRD is not served".to_owned()));
            (shard.holder, shard.running, shard.leading_since) = (None, false, None);
        });
        let changed = now();
        browser
            .sees(
                "a change is seen",
                "document.getElementById('attention').innerText.includes('its CRD is not served')",
            )
            .await?;
        tell(&format!("a change was on the page after {:?}", changed.elapsed()));
        browser.run("document.getElementById('filter').focus();").await?;
        browser.press("Kind0500").await?;
        browser.sees("the filter leaves one kind", "document.querySelectorAll('#kinds-body tr').length === 1").await?;
        ensure(bytes < 2 << 20, || format!("{bytes} bytes"))?;
        ensure_quiet(&browser, &[&page]).await
    };
    tokio::select! {
        () = server => anyhow::bail!("the server has ended"),
        shown = shown => shown?,
    }
    browser.close().await
}
