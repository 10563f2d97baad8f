//! `leasehold check --cluster`: the shipped compositions are held to what the real API server publishes.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use leasehold_cluster::Cluster;

use crate::stage::ensure;

#[tokio::test(flavor = "multi_thread")]
async fn compositions_are_held_to_the_schemas_of_the_api_server() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    cluster.kubectl(&["apply", "-f", &root.join("crds").display().to_string()]).await?;
    for kind in ["tenants", "webapps"] {
        cluster.established(&format!("{kind}.leasehold.dev")).await?;
    }
    let kubeconfig = cluster.kubeconfig();
    let check = |folder: &Path| {
        let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .env("KUBECONFIG", kubeconfig)
            .args(["check", "--cluster", "-f"])
            .arg(folder)
            .output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        anyhow::Ok((said.status.code(), text(&said.stdout), text(&said.stderr)))
    };
    // Each type is served and each field is there.
    let (code, said, note) = check(&root.join("config"))?;
    ensure(code == Some(0) && note.is_empty(), || format!("{code:?} {said} {note}"))?;

    let folder = tempfile::tempdir()?;
    for file in ["leasehold.yaml", "tenant.yaml", "webapp.yaml"] {
        let text = fs::read_to_string(root.join("config").join(file))?;
        let text = text.replace("allowPrivilegeEscalation", "allowPrivilegeEscalated").replace("{hard:", "{hrad:");
        fs::write(folder.path().join(file), text)?;
    }
    let (code, _, words) = check(folder.path())?;
    for expected in [
        "webapp.yaml: deployment.template.spec.template.spec.containers[0].securityContext.allowPrivilegeEscalated: the schema has \
         no such field; did you mean `allowPrivilegeEscalation`?",
        "tenant.yaml: quota.template.spec.hrad: the schema has no such field; did you mean `hard`?",
        "2 errors",
    ] {
        ensure(code == Some(2) && words.contains(expected), || format!("{expected} in {code:?} {words}"))?;
    }
    Ok(())
}
