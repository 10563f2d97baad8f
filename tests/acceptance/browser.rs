//! A real browser without a screen: Chromium, driven by chromedriver, which comes with it.
//!
//! The driver speaks the WebDriver protocol of the W3C, of which a test needs six requests. The crates that wrap it cost more
//! than they save: thirtyfour makes serde_json keep the order of fields in all that is tested, fantoccini brings 45 crates and
//! another licence, and chromiumoxide and headless_chrome a protocol of 60,000 generated lines.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, anyhow, bail};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use k8s_openapi::ByteString;
use leasehold_cluster::eventually;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::stage::PATIENCE;

/// How to get what is missing.
pub const MISSING: &str = "LEFT OUT: what the page is in a real browser, for there are no `chromium` and `chromedriver` in PATH. \
     Debian has them: apt-get install chromium chromium-driver; `.ci/run browser` does that where it may.";

/// What keeps it to the page and to this machine.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// Keys, as the protocol has them.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";
pub const LEFT: &str = "\u{e012}";
pub const RIGHT: &str = "\u{e014}";

/// A browser with one window. It ends with this handle.
pub struct Browser {
    client: Client<HttpConnector, Full<Bytes>>,
    /// Of the session.
    url: String,
    _driver: Child,
    _profile: TempDir,
}

fn program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let all = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.into_iter().find(|file| file.is_file())
}

impl Browser {
    /// `None`: there is none on this machine.
    pub async fn open() -> Result<Option<Self>> {
        let browser = program(&["chromium", "chromium-browser", "google-chrome"]);
        let (Some(browser), Some(driver)) = (browser, program(&["chromedriver"])) else { return Ok(None) };
        let profile = tempfile::tempdir()?;
        // What a browser leaves of itself goes with its profile.
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(driver.stdout.take().context("its output")?).lines();
        let port = loop {
            let line = timeout(PATIENCE, lines.next_line()).await.context("chromedriver does not start")??;
            let line = line.context("chromedriver has ended")?;
            // First it says which port it was asked for, and then which one it has.
            if let Some((_, port)) = line.rsplit_once("started successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let folder = format!("--user-data-dir={}", profile.path().join("profile").display());
        let flags: Vec<_> = FLAGS.iter().map(|flag| (*flag).to_owned()).chain([folder]).collect();
        let wanted = json!({
            "goog:chromeOptions": {"args": flags, "binary": browser},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let url = format!("http://127.0.0.1:{port}/session");
        let mut this = Self { client, url, _driver: driver, _profile: profile };
        let session = this.post("", json!({"capabilities": {"alwaysMatch": wanted}})).await?;
        this.url = format!("{}/{}", this.url, session["sessionId"].as_str().context("a session")?);
        Ok(Some(this))
    }

    /// Ends the session; without it the browser ends with its driver.
    pub async fn close(self) -> Result<()> {
        self.ask("DELETE", "", None).await.map(drop)
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value> {
        self.ask("POST", path, Some(body)).await
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request = request.header("content-type", "application/json").body(Full::new(body))?;
        let answer = timeout(PATIENCE, self.client.request(request)).await.context("the driver does not answer")??;
        let bytes = answer.into_body().collect().await?.to_bytes();
        let value = serde_json::from_slice::<Value>(&bytes)?["value"].take();
        match value["error"].as_str() {
            Some(error) => bail!("{error}: {}", value["message"].as_str().unwrap_or_default()),
            None => Ok(value),
        }
    }

    pub async fn goto(&self, url: &str) -> Result<()> {
        self.post("/url", json!({"url": url})).await.map(drop)
    }

    /// What a script returns in the page.
    pub async fn run(&self, script: &str) -> Result<Value> {
        let returned = self.post("/execute/sync", json!({"script": script, "args": []})).await;
        returned.with_context(|| script.to_owned())
    }

    /// Waits until an expression is true in the page.
    pub async fn sees(&self, what: &str, expression: &str) -> Result<()> {
        let script = format!("return Boolean({expression});");
        let seen = eventually(what, PATIENCE, || self.run(&script), |value| value == &json!(true)).await;
        match seen {
            Ok(_) => Ok(()),
            Err(error) => {
                let text = self.run("return document.body.innerText;").await.unwrap_or_default();
                Err(anyhow!("{error:#}\nthe page says:\n{}", text.as_str().unwrap_or_default()))
            }
        }
    }

    /// Presses keys, wherever the focus is.
    pub async fn press(&self, keys: &str) -> Result<()> {
        let press = |key: char| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})];
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", json!({"actions": [keyboard]})).await.map(drop)
    }

    /// A command of the DevTools protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Result<Value> {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": parameters})).await
    }

    /// A window of this width.
    pub async fn width(&self, width: u32, mobile: bool) -> Result<()> {
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": mobile});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await?;
        Ok(())
    }

    pub async fn dark(&self, dark: bool) -> Result<()> {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", features).await?;
        Ok(())
    }

    async fn log(&self, of: &str) -> Result<Vec<Value>> {
        Ok(self.post("/se/log", json!({"type": of})).await?.as_array().cloned().unwrap_or_default())
    }

    /// What the console has said since this was last asked.
    pub async fn console(&self) -> Result<Vec<Value>> {
        self.log("browser").await
    }

    /// The addresses that the page has asked for since this was last asked.
    pub async fn requests(&self) -> Result<Vec<String>> {
        let requested = |entry: &Value| {
            let message: Value = serde_json::from_str(entry["message"].as_str()?).ok()?;
            let message = &message["message"];
            let is_one =
                ["Network.requestWillBeSent", "Network.webSocketCreated"].iter().any(|it| message["method"] == *it);
            let params = &message["params"];
            is_one.then(|| params["request"]["url"].as_str().or(params["url"].as_str()).unwrap_or_default().to_owned())
        };
        Ok(self.log("performance").await?.iter().filter_map(requested).collect())
    }

    /// Keeps a picture of the whole page, in a window of this width.
    pub async fn screenshot(&self, width: u32, file: &Path) -> Result<()> {
        let height = self.run("return document.documentElement.scrollHeight;").await?;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await?;
        // Bytes in JSON are spelt as those of a Secret.
        let ByteString(shot) = serde_json::from_value(self.ask("GET", "/screenshot", None).await?)?;
        std::fs::create_dir_all(file.parent().context("a folder")?)?;
        Ok(std::fs::write(file, shot)?)
    }
}
