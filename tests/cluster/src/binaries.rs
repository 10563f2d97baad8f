//! Finds the control plane's binaries, or builds them with Go from the versions pinned in `go.mod` beside this crate.
//!
//! Order: `LEASEHOLD_CLUSTER_BIN`, `KUBEBUILDER_ASSETS`, the cache, `go build` into the cache.
//! The cache is `$XDG_CACHE_HOME` or `~/.cache`, `leasehold/`, one directory for each content of `go.mod` and `go.sum`.

use anyhow::{Context, Result, bail};
use std::{
    env,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

const MODULE: &str = env!("CARGO_MANIFEST_DIR");
const GO_MOD: &str = include_str!("../go.mod");
const GO_SUM: &str = include_str!("../go.sum");
const CLIENT_GO: &str = include_str!("../clientgo/main.go");
const OLD_CLIENT_GO: [&str; 3] = [
    include_str!("../clientgo-configmaps/main.go"),
    include_str!("../clientgo-configmaps/go.mod"),
    include_str!("../clientgo-configmaps/go.sum"),
];
const CEL_GO: [&str; 3] =
    [include_str!("../celgo/main.go"), include_str!("../celgo/go.mod"), include_str!("../celgo/go.sum")];
const HELM: [&str; 2] = [include_str!("../helm/go.mod"), include_str!("../helm/go.sum")];
const PROMETHEUS: [&str; 2] = [include_str!("../prometheus/go.mod"), include_str!("../prometheus/go.sum")];
const PROGRESS: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// The programs a control plane is made of.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Where they are.
    pub directory: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// kube-controller-manager; `KUBEBUILDER_ASSETS` often comes without, and then Deployments do not roll.
    pub kube_controller_manager: Option<PathBuf>,
    /// kubectl.
    pub kubectl: PathBuf,
}

impl Binaries {
    /// Finds the binaries, or builds them, which takes minutes the first time. Blocks; says on stderr what it does.
    ///
    /// # Errors
    /// When a directory named by the environment is incomplete, when Go is missing or too old, or when the build fails.
    pub fn find_or_build() -> Result<Self> {
        Self::find_or_build_with(&mut Progress::said())
    }

    /// The same, with the progress of a build in this file: one line, written anew each second, for a program that waits.
    ///
    /// # Errors
    /// As [`find_or_build`](Self::find_or_build).
    pub fn find_or_build_into(progress: &Path) -> Result<Self> {
        Self::find_or_build_with(&mut Progress::File(progress.to_owned()))
    }

    fn find_or_build_with(progress: &mut Progress) -> Result<Self> {
        if let Some(directory) = directory_from("LEASEHOLD_CLUSTER_BIN") {
            let found = Self::in_directory(&directory).context("LEASEHOLD_CLUSTER_BIN")?;
            if found.kube_controller_manager.is_none() {
                bail!("LEASEHOLD_CLUSTER_BIN: {} has no kube-controller-manager", directory.display());
            }
            return Ok(found);
        }
        if let Some(directory) = directory_from("KUBEBUILDER_ASSETS") {
            let found = Self::in_directory(&directory).context("KUBEBUILDER_ASSETS")?;
            if found.kube_controller_manager.is_none() {
                say(&format!(
                    "KUBEBUILDER_ASSETS ({}) has no kube-controller-manager: Deployments, namespaces and garbage collection will not work",
                    directory.display()
                ));
            }
            return Ok(found);
        }
        let directory = cache()?.join(format!("control-plane-{}-{:016x}", version()?, fnv(&[GO_MOD, GO_SUM])));
        once(&directory, |into| {
            say(&format!(
                "building etcd, kube-apiserver, kube-controller-manager and kubectl {} with Go; the first build takes 5 to 10 minutes",
                version()?
            ));
            let version = version()?;
            let mut numbers = version.trim_start_matches('v').split('.');
            let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
            // Without these kubectl cannot parse the server's version.
            let flags = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
                .map(|package| {
                    format!("-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} -X {package}.gitTreeState=clean")
                })
                .join(" ");
            go_build("", &["-ldflags", &format!("-s -w {flags}")], into, "tool", progress)?;
            // etcd's main package is go.etcd.io/etcd/server.
            fs::rename(into.join("server"), into.join("etcd")).context("the build made no etcd")
        })?;
        Self::in_directory(&directory)
    }

    /// A plain client-go elector (`clientgo/main.go`), to stand beside ours. Blocks; built on first use, then cached.
    ///
    /// # Errors
    /// When it is not beside the binaries and cannot be built.
    pub fn client_go_elector(&self) -> Result<PathBuf> {
        let beside = self.directory.join("clientgo");
        if beside.is_file() {
            return Ok(beside);
        }
        let directory = cache()?.join(format!("clientgo-{:016x}", fnv(&[GO_MOD, GO_SUM, CLIENT_GO])));
        once(&directory, |into| {
            say("building the client-go elector");
            go_build("", &[], into, "./clientgo", &mut Progress::said())
        })?;
        Ok(directory.join("clientgo"))
    }

    /// An elector of client-go v0.23 (`clientgo-configmaps/main.go`), the last with locks that are ConfigMaps. Blocks; built
    /// on first use, then cached.
    ///
    /// # Errors
    /// When it is not beside the binaries and cannot be built.
    pub fn old_client_go_elector(&self) -> Result<PathBuf> {
        let beside = self.directory.join("clientgo-configmaps");
        if beside.is_file() {
            return Ok(beside);
        }
        let directory = cache()?.join(format!("clientgo-configmaps-{:016x}", fnv(&OLD_CLIENT_GO)));
        once(&directory, |into| {
            say("building the elector of an old client-go");
            go_build("clientgo-configmaps", &[], into, ".", &mut Progress::said())
        })?;
        Ok(directory.join("clientgo-configmaps"))
    }

    fn in_directory(directory: &Path) -> Result<Self> {
        let find = |name: &str| {
            let path = directory.join(name);
            if path.is_file() { Ok(path) } else { bail!("{} has no {name}", directory.display()) }
        };
        Ok(Self {
            etcd: find("etcd")?,
            kube_apiserver: find("kube-apiserver")?,
            kube_controller_manager: find("kube-controller-manager").ok(),
            kubectl: find("kubectl")?,
            directory: directory.to_owned(),
        })
    }
}

/// helm (`helm/go.mod`), for charts. Blocks; built on first use, then cached. What it has in common with the control plane is
/// compiled once for both.
///
/// # Errors
/// When it is not in `LEASEHOLD_CLUSTER_BIN` and cannot be built.
pub fn helm() -> Result<PathBuf> {
    if let Some(beside) = directory_from("LEASEHOLD_CLUSTER_BIN").map(|directory| directory.join("helm"))
        && beside.is_file()
    {
        return Ok(beside);
    }
    let directory = cache()?.join(format!("helm-{:016x}", fnv(&HELM)));
    once(&directory, |into| {
        say("building helm");
        go_build("helm", &["-ldflags", "-s -w"], into, "tool", &mut Progress::said())
    })?;
    Ok(directory.join("helm"))
}

/// cel-go with Kubernetes' library (`celgo/main.go`), to compare expressions with. Blocks; built on first use, then cached.
///
/// # Errors
/// When it is not in `LEASEHOLD_CLUSTER_BIN` and cannot be built.
pub(crate) fn cel_go() -> Result<PathBuf> {
    if let Some(beside) = directory_from("LEASEHOLD_CLUSTER_BIN").map(|directory| directory.join("celgo"))
        && beside.is_file()
    {
        return Ok(beside);
    }
    let directory = cache()?.join(format!("celgo-{:016x}", fnv(&CEL_GO)));
    once(&directory, |into| {
        say("building cel-go with the library of Kubernetes");
        go_build("celgo", &[], into, ".", &mut Progress::said())
    })?;
    Ok(directory.join("celgo"))
}

/// `promtool` and `prometheus`, which monitoring is tested with. Blocks; built on first use (four minutes on two cores), then
/// cached.
///
/// # Errors
/// When they are not in `LEASEHOLD_CLUSTER_BIN` and cannot be built.
pub fn prometheus() -> Result<PrometheusBinaries> {
    let in_directory = |directory: &Path| PrometheusBinaries {
        promtool: directory.join("promtool"),
        prometheus: directory.join("prometheus"),
    };
    if let Some(beside) = directory_from("LEASEHOLD_CLUSTER_BIN").map(|directory| in_directory(&directory))
        && beside.promtool.is_file()
        && beside.prometheus.is_file()
    {
        return Ok(beside);
    }
    let directory = cache()?.join(format!("prometheus-{:016x}", fnv(&PROMETHEUS)));
    once(&directory, |into| {
        say("building promtool and prometheus; the first build takes four minutes");
        let flags = ["-ldflags", "-s -w", "-tags", "remove_all_sd"];
        go_build("prometheus", &flags, into, "tool", &mut Progress::said())
    })?;
    Ok(in_directory(&directory))
}

/// The programs that monitoring is tested with.
#[derive(Clone, Debug)]
pub struct PrometheusBinaries {
    /// Tests rules.
    pub promtool: PathBuf,
    /// Scrapes and answers queries.
    pub prometheus: PathBuf,
}

/// Makes `directory` by running `make` in a temporary one beside it, unless it exists. Concurrent callers wait for the first.
fn once(directory: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().context("the cache has no parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("failed to create {}", parent.display()))?;
    let name = directory.file_name().context("the cache directory has no name")?.to_string_lossy();
    let lock = File::create(parent.join(format!("{name}.lock")))?;
    if lock.try_lock().is_err() {
        say("another process is building the same; waiting for it");
        lock.lock().context("failed to lock the cache")?;
    }
    if directory.is_dir() {
        return Ok(());
    }
    let building = tempfile::Builder::new().prefix(".building-").tempdir_in(parent)?;
    make(building.path())?;
    fs::rename(building.keep(), directory).context("failed to move the build into the cache")
}

/// Where it is said how far a build is.
enum Progress {
    /// A terminal: one line, in place.
    Terminal,
    /// Elsewhere: a line every half minute.
    Lines(Option<Instant>),
    /// A file of one line, for a program that waits.
    File(PathBuf),
}

impl Progress {
    fn said() -> Self {
        if io::stderr().is_terminal() { Self::Terminal } else { Self::Lines(None) }
    }

    /// Called each second or so.
    fn say(&mut self, what: &str) {
        match self {
            // What does not fit would leave a line behind each time.
            Self::Terminal => _ = write!(io::stderr(), "\r\x1b[K{}", what.chars().take(79).collect::<String>()),
            Self::Lines(last) => {
                let due = last.get_or_insert_with(Instant::now);
                if due.elapsed() >= PROGRESS {
                    say(what);
                    *last = Some(Instant::now());
                }
            }
            // The next second writes it again.
            Self::File(path) => _ = fs::write(path, format!("{what}\n")),
        }
    }

    fn end(&self) {
        if matches!(self, Self::Terminal) {
            _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// The same for all modules, so that packages which they share are compiled once. Debug information is made by the compiler and
/// left out by the linker; the binaries are as fast without it. To inline calls takes the compiler a fifth of its time, so of
/// Kubernetes' own packages only those are inlined which each request goes through: the last pattern that a package matches
/// counts.
const FLAGS: [&str; 7] = [
    "-trimpath",
    "-gcflags=all=-dwarf=false",
    "-gcflags=k8s.io/...=-dwarf=false -l",
    "-gcflags=k8s.io/apimachinery/...=-dwarf=false",
    "-gcflags=k8s.io/apiserver/...=-dwarf=false",
    "-gcflags=k8s.io/apiextensions-apiserver/...=-dwarf=false",
    "-gcflags=k8s.io/kube-openapi/...=-dwarf=false",
];

/// So few CPUs have work for as many compilers until the end; with more of them, the last packages would wait for one thread each.
const FEW_CPUS: usize = 2;

/// Builds a package of a module below this crate's folder.
fn go_build(module: &str, flags: &[&str], into: &Path, package: &str, progress: &mut Progress) -> Result<()> {
    check_go()?;
    let started = Instant::now();
    let module = Path::new(MODULE).join(module);
    let all = packages(&module, package);
    let mut build = Command::new("go");
    let cpus = available_parallelism().map_or(1, NonZero::get);
    if cpus <= FEW_CPUS {
        // A compiler for each keeps them busy; several threads in each would cost an eighth more of CPU time.
        build.env("GOMAXPROCS", "1");
    }
    let mut build = build
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        // The compiler collects its garbage less often, and takes a sixth less of CPU time for it.
        .env("GOGC", env::var("GOGC").unwrap_or_else(|_| "400".to_owned()))
        // One line for each package that is compiled.
        .args(["build", "-v", "-p", &cpus.to_string()])
        .args(FLAGS)
        .args(flags)
        .arg("-o")
        // The slash says that this is a directory, also for one package.
        .arg(format!("{}/", into.display()))
        .arg(package)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to start go build")?;
    let output = BufReader::new(build.stderr.take().context("go build has no standard error")?);
    let (lines, read) = mpsc::channel();
    std::thread::spawn(move || output.lines().map_while(io::Result::ok).try_for_each(|line| lines.send(line)));
    let (mut compiled, mut said) = (0_usize, Instant::now());
    loop {
        match read.recv_timeout(SECOND) {
            Ok(line) if is_package(&line) => compiled += 1,
            Ok(line) => {
                progress.end();
                say(&line);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if said.elapsed() >= SECOND {
            let of = all.map_or_else(String::new, |all| format!(" of {all}"));
            progress.say(&format!("{compiled}{of} packages compiled, {}", elapsed(started)));
            said = Instant::now();
        }
    }
    let status = build.wait()?;
    progress.end();
    if !status.success() {
        bail!("go build {package} failed ({status}); its output is above");
    }
    say(&format!("built in {}", elapsed(started)));
    Ok(())
}

/// How many packages there are to compile where none is cached; unknown if Go cannot tell.
fn packages(module: &Path, package: &str) -> Option<usize> {
    let listed = Command::new("go")
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        .args(["list", "-deps", package])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let listed = listed.ok().filter(|listed| listed.status.success())?;
    Some(String::from_utf8_lossy(&listed.stdout).lines().count())
}

/// Whether a line of `go build -v` is the path of a package, not an error and not a download.
fn is_package(line: &str) -> bool {
    !line.is_empty() && !line.starts_with(['#', '.']) && !line.contains([' ', '\t', ':'])
}

fn check_go() -> Result<()> {
    let wanted = GO_MOD.lines().find_map(|line| line.strip_prefix("go ")).context("go.mod names no Go version")?;
    let output = Command::new("go").arg("version").current_dir(MODULE).output().with_context(|| {
        format!("go is not on PATH: install Go {wanted} or newer, or set LEASEHOLD_CLUSTER_BIN to a directory with the binaries")
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("go version failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let found = text.split_whitespace().find_map(|word| word.strip_prefix("go1")).map(|rest| format!("1{rest}"));
    let found = found.with_context(|| format!("cannot read the version in {text:?}"))?;
    if numbers(&found) < numbers(wanted) {
        bail!("Go {found} is too old: {wanted} or newer is needed");
    }
    Ok(())
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split('.')
        .map(|part| part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0))
        .collect()
}

fn version() -> Result<&'static str> {
    GO_MOD
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split_whitespace().next())
        .context("go.mod names no k8s.io/kubernetes version")
}

fn directory_from(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn cache() -> Result<PathBuf> {
    let base = directory_from("XDG_CACHE_HOME")
        .or_else(|| directory_from("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("leasehold"))
}

/// FNV-1a: the same name for the same pins, whatever compiled this.
fn fnv(texts: &[&str]) -> u64 {
    texts
        .iter()
        .flat_map(|text| text.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn elapsed(since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    if seconds < 60 { format!("{seconds} s") } else { format!("{} min {} s", seconds / 60, seconds % 60) }
}

#[expect(clippy::print_stderr, reason = "a build of minutes must say so, also inside a test without a log subscriber")]
fn say(text: &str) {
    eprintln!("leasehold-cluster: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions_compare_by_number() {
        assert!(numbers("1.26.8") > numbers("1.26.0"));
        assert!(numbers("1.9") < numbers("1.26.0"));
        assert!(numbers("1.27rc1") > numbers("1.26.0"));
    }

    #[test]
    fn what_go_compiles_is_told_from_what_it_says() {
        for package in ["fmt", "internal/cpu", "k8s.io/api/core/v1", "vendor/golang.org/x/net/idna"] {
            assert!(is_package(package), "{package}");
        }
        for line in ["", "# k8s.io/api/core/v1", "./main.go:3:1: undefined: x", "go: downloading k8s.io/api v0.37.2"] {
            assert!(!is_package(line), "{line}");
        }
    }

    #[test]
    fn the_progress_of_a_build_is_one_line_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("progress");
        let mut progress = Progress::File(file.clone());
        progress.say("1 of 2");
        progress.say("2 of 2");
        assert_eq!(fs::read_to_string(file).unwrap(), "2 of 2\n");
    }

    #[test]
    fn the_pinned_version_is_read_from_go_mod() {
        assert!(version().unwrap().starts_with("v1."));
    }

    #[test]
    fn a_directory_is_made_once_and_only_when_making_it_worked() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("made");
        once(&directory, |_| bail!("no")).unwrap_err();
        assert!(!directory.exists());
        once(&directory, |into| Ok(fs::write(into.join("file"), "1")?)).unwrap();
        once(&directory, |_| bail!("called twice")).unwrap();
        assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "1");
    }
}
