//! The pages for tasks, played: their files are written and their commands run as a reader would, in a copy of this repository's
//! folders, on a control plane of their own.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use anyhow::{Context, Result};
use leasehold_cluster::{Cluster, Kubelet, helm};
use tokio::process::Command;

use crate::stage::{apart, ensure};

/// What a page has its reader do.
enum Step {
    /// A YAML that begins with the name of its file.
    Write {
        file: String,
        text: String,
    },
    Run(String),
}

/// The steps of a page in their order: its YAML with names of files, and its blocks of `sh`.
fn steps(page: &str) -> Vec<Step> {
    let text = fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let blocks = text.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let step = |(language, code): (&str, &str)| match language {
        "sh" => Some(Step::Run(code.to_owned())),
        "yaml" => {
            let file = code.lines().next()?.strip_prefix("# ")?;
            Some(Step::Write { file: file.to_owned(), text: code.to_owned() })
        }
        _ => None,
    };
    blocks.filter_map(step).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of the folders that the pages speak of, and the programs.
struct Desk {
    folder: tempfile::TempDir,
    path: String,
    cluster: &'static Cluster,
    _kubelet: &'static Kubelet,
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy(&entry.path(), &to)? } else { _ = fs::copy(entry.path(), to)? }
    }
    Ok(())
}

impl Desk {
    async fn new() -> Result<Self> {
        let (cluster, kubelet) = apart().await?;
        let folder = tempfile::tempdir()?;
        for name in ["config", "crds", "deploy", "overlays"] {
            copy(&root().join(name), &folder.path().join(name))?;
        }
        let helm = tokio::task::spawn_blocking(helm).await??;
        // The Pods are processes of this machine, which the API server's proxy refuses to connect to.
        let program = folder.path().join("bin/leasehold");
        fs::create_dir(folder.path().join("bin"))?;
        let real = env!("CARGO_BIN_EXE_leasehold");
        let wrapper = format!(
            "#!/bin/sh\ncase $1 in status | explain) exec {real} \"$@\" --via pod-address ;; esac\nexec {real} \"$@\"\n"
        );
        fs::write(&program, wrapper)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let mut path = String::new();
        for program in [&program, &cluster.binaries().kubectl, &helm] {
            path += &format!("{}:", program.parent().context("a folder")?.display());
        }
        path += &std::env::var("PATH")?;
        Ok(Self { folder, path, cluster, _kubelet: kubelet })
    }

    /// Does what a page says; the first command that fails is told with its output.
    async fn play(&self, page: &str) -> Result<()> {
        let mut ran = 0;
        for step in steps(page) {
            match step {
                Step::Write { file, text } => fs::write(self.folder.path().join(file), text)?,
                Step::Run(code) => {
                    self.run(&code).await.with_context(|| page.to_owned())?;
                    ran += 1;
                }
            }
        }
        ensure(ran > 0, || format!("{page}: nothing to run"))
    }

    async fn run(&self, code: &str) -> Result<()> {
        let (is_done, said) = self.tried(code).await?;
        if is_done {
            return Ok(());
        }
        let (_, there) = self.tried("leasehold status -n leasehold-system; kubectl -n leasehold-system get pods,leases; kubectl -n leasehold-system logs -l app.kubernetes.io/name=leasehold --tail=15 --prefix").await?;
        ensure(false, || format!("{code}\n{said}\nWhat is there:\n{there}"))
    }

    /// Whether all of it worked, and what it said.
    async fn tried(&self, code: &str) -> Result<(bool, String)> {
        let output = Command::new("bash")
            .args(["-euxo", "pipefail", "-c", code])
            .current_dir(self.folder.path())
            .env("PATH", &self.path)
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
        Ok((output.status.success(), said))
    }
}

/// The kustomization from its installation to a kind of the reader's own, its rollouts and its removal.
#[tokio::test(flavor = "multi_thread")]
async fn the_pages_for_tasks_do_what_they_say() -> Result<()> {
    let desk = Desk::new().await?;
    // Both ways, one after the other, with what removes them.
    desk.play("docs/install.md").await?;
    desk.run("kubectl apply -k deploy/").await?;
    desk.run("kubectl -n leasehold-system rollout status deployment/leasehold --timeout=120s").await?;
    desk.play("docs/first-kind.md").await?;
    desk.play("docs/rollouts.md").await?;
    desk.play("docs/not-led.md").await?;
    // From there to the chart, as docs/install.md says it, with the values of the last block of the first kind.
    let change = "kubectl -n leasehold-system delete deployment leasehold\n\
                  helm install leasehold deploy/chart --namespace leasehold-system --take-ownership --force-conflicts \
                  --values values.yaml --set-file compositions.queue=config/queue.yaml --wait --timeout 120s\n\
                  leasehold status -n leasehold-system --check --timeout 30\n\
                  kubectl -n leasehold-system get lease queue.example.com -o jsonpath='{.spec.holderIdentity}' | grep leasehold";
    desk.run(change).await
}
