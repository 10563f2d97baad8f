//! Which cluster a command talks to.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Failure;

#[derive(Args, Debug, Default)]
pub(super) struct Target {
    /// The kubeconfig file [default: $KUBECONFIG, or ~/.kube/config, or in a Pod its ServiceAccount]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl Target {
    /// How the API server is reached.
    pub(super) async fn config(&self) -> Result<Config, Failure> {
        if self.kubeconfig.is_none() && self.context.is_none() {
            return Ok(Config::infer().await.context("no cluster to talk to: set KUBECONFIG, or give --kubeconfig")?);
        }
        let (file, read) = match &self.kubeconfig {
            Some(file) => (file.display().to_string(), Kubeconfig::read_from(file)),
            None => ("the kubeconfig".to_owned(), Kubeconfig::read()),
        };
        let read = read.map_err(|error| Failure::Usage(format!("--kubeconfig: {file} cannot be read: {error}")))?;
        self.of(&file, read).await
    }

    async fn of(&self, file: &str, read: Kubeconfig) -> Result<Config, Failure> {
        if let Some(wanted) = &self.context
            && !read.contexts.iter().any(|context| context.name == *wanted)
        {
            let there: Vec<_> = read.contexts.iter().map(|context| context.name.as_str()).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(Failure::Usage(format!("--context: {file} has no context {wanted}; there are {there}")));
        }
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = Config::from_custom_kubeconfig(read, &options).await;
        Ok(config.with_context(|| format!("{file} cannot be used"))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: Config
current-context: near
clusters:
- {name: a, cluster: {server: \"https://a.example.com:6443\"}}
- {name: b, cluster: {server: \"https://b.example.com:6443\"}}
users: [{name: me, user: {token: secret}}]
contexts:
- {name: near, context: {cluster: a, user: me, namespace: here}}
- {name: far, context: {cluster: b, user: me, namespace: there}}
";

    async fn of(context: Option<&str>) -> Result<Config, Failure> {
        let target = Target { kubeconfig: None, context: context.map(str::to_owned) };
        target.of("k.yaml", Kubeconfig::from_yaml(FILE).unwrap()).await
    }

    #[tokio::test]
    async fn a_context_chooses_cluster_and_namespace_and_a_wrong_one_is_named() {
        let seen = |config: Config| (config.cluster_url.host().unwrap().to_owned(), config.default_namespace);
        assert_eq!(seen(of(None).await.ok().unwrap()), ("a.example.com".to_owned(), "here".to_owned()));
        assert_eq!(seen(of(Some("far")).await.ok().unwrap()), ("b.example.com".to_owned(), "there".to_owned()));
        let Err(Failure::Usage(said)) = of(Some("fra")).await else { panic!("there is no such context") };
        assert_eq!(said, "--context: k.yaml has no context fra; there are near, far");
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_not_there_is_named() {
        let target = Target { kubeconfig: Some("/nowhere/k.yaml".into()), context: None };
        let Err(Failure::Usage(said)) = target.config().await else { panic!("there is no such file") };
        assert!(said.starts_with("--kubeconfig: /nowhere/k.yaml cannot be read: "), "{said}");
    }
}
