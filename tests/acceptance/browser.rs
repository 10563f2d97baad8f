//! A real browser without a screen: Chromium, driven by its own driver.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use leasehold_cluster::eventually;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    Key, WebDriver,
    error::{WebDriverError, WebDriverResult},
    session::http::{Body, HttpClient},
};
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

/// A browser with one window. It ends with this handle.
pub struct Browser {
    driver: WebDriver,
    _process: Child,
    _profile: TempDir,
}

/// Speaks with the driver, which is on this machine.
struct Http;

#[async_trait::async_trait]
impl HttpClient for Http {
    async fn send(&self, request: http::Request<Body<'_>>) -> WebDriverResult<http::Response<Bytes>> {
        let failed = |error: String| WebDriverError::FatalError(error);
        let request = request.map(|body| match body {
            Body::Empty => Full::default(),
            Body::Json(value) => Full::new(Bytes::from(value.to_string())),
        });
        let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(HttpConnector::new());
        let (head, body) = client.request(request).await.map_err(|error| failed(error.to_string()))?.into_parts();
        let body = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
        Ok(http::Response::from_parts(head, body))
    }

    async fn new(&self) -> Arc<dyn HttpClient> {
        Arc::new(Self)
    }
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
            if let Some((_, port)) = line.rsplit_once("on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let folder = format!("--user-data-dir={}", profile.path().join("profile").display());
        let flags: Vec<_> = FLAGS.iter().map(|flag| (*flag).to_owned()).chain([folder]).collect();
        let capabilities = json!({
            "goog:chromeOptions": {"args": flags, "binary": browser},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else { bail!("no object") };
        let builder = WebDriver::builder(format!("http://127.0.0.1:{port}"), capabilities);
        let started = builder.client(Http).connect().await.context("no session")?;
        Ok(Some(Self { driver: started, _process: driver, _profile: profile }))
    }

    /// Ends the session; without it the browser ends with its driver.
    pub async fn close(self) -> Result<()> {
        Ok(self.driver.quit().await?)
    }

    pub async fn goto(&self, url: &str) -> Result<()> {
        Ok(self.driver.goto(url).await?)
    }

    /// What a script returns in the page.
    pub async fn run(&self, script: &str) -> Result<Value> {
        let returned = self.driver.execute(script, Vec::new()).await.with_context(|| script.to_owned())?;
        Ok(returned.json().clone())
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

    /// Presses a key, wherever the focus is.
    pub async fn press(&self, key: Key) -> Result<()> {
        Ok(self.driver.active_element().await?.send_keys(key).await?)
    }

    pub async fn type_text(&self, text: &str) -> Result<()> {
        Ok(self.driver.active_element().await?.send_keys(text).await?)
    }

    /// A command of the DevTools protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Result<Value> {
        Ok(self.driver.cdp().send_raw(command, parameters).await?)
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

    /// What the console has said since this was last asked.
    pub async fn console(&self) -> Result<Vec<String>> {
        Ok(self.driver.browser_log().await?.into_iter().map(|entry| format!("{}: {}", entry.level, entry.message)).collect())
    }

    /// The addresses that the page has asked for since this was last asked.
    pub async fn requests(&self) -> Result<Vec<String>> {
        let requested = |message: &str| {
            let message: Value = serde_json::from_str(message).ok()?;
            let message = &message["message"];
            let is_one = ["Network.requestWillBeSent", "Network.webSocketCreated"].iter().any(|it| message["method"] == *it);
            let params = &message["params"];
            is_one.then(|| params["request"]["url"].as_str().or(params["url"].as_str()).unwrap_or_default().to_owned())
        };
        let log = self.driver.get_log("performance").await?;
        Ok(log.iter().filter_map(|entry| requested(&entry.message)).collect())
    }

    /// Keeps a picture of the whole page, in a window of this width.
    pub async fn screenshot(&self, width: u32, file: &Path) -> Result<()> {
        let height = self.run("return document.documentElement.scrollHeight;").await?;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await?;
        let shot = self.driver.screenshot_as_png().await?;
        std::fs::create_dir_all(file.parent().context("a folder")?)?;
        Ok(std::fs::write(file, shot)?)
    }
}
