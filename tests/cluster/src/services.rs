//! What kube-proxy is to a node, for the API server only: its connections to the cluster IP of a Service arrive at a pod.
//!
//! Nothing routes cluster IPs on this machine, and EndpointSlices refuse loopback addresses. But the API server can be told
//! to open its connections into the cluster through a proxy (`--egress-selector-config-file`), as those of managed
//! clusters are; this is that proxy. What is no cluster IP, such as a kubelet's address, is connected to as it is.

use anyhow::{Context, Result, bail};
use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::{Api, Client, api::ListParams};
use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpStream, UnixListener, UnixStream},
};

/// For so long a pod that is going is still connected to: as on a real node, endpoints follow with a delay.
const LAG: Duration = Duration::from_secs(1);

/// Where the API server finds the proxy.
pub(crate) fn socket(directory: &Path) -> PathBuf {
    directory.join("egress.sock")
}

/// The file that tells the API server.
pub(crate) fn configuration(directory: &Path) -> String {
    format!(
        "apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport:
      uds: {{udsName: {}}}
",
        socket(directory).display()
    )
}

struct Services {
    client: Client,
    seen: Mutex<HashMap<SocketAddr, (Instant, Vec<SocketAddr>)>>,
    turn: std::sync::atomic::AtomicUsize,
}

/// Takes the socket; the future serves it for ever.
pub(crate) fn serve(directory: &Path, client: Client) -> Result<impl Future<Output = ()> + Send + 'static> {
    let path = socket(directory);
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("{}: no socket can be made there; choose a shorter directory", path.display()))?;
    let services = Arc::new(Services { client, seen: Mutex::default(), turn: Default::default() });
    Ok(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let services = Arc::clone(&services);
            tokio::spawn(async move {
                if let Err(error) = services.connect(stream).await {
                    tracing::debug!("no connection for the API server: {error:#}");
                }
            });
        }
    })
}

impl Services {
    /// One `CONNECT` of the API server, to its end.
    async fn connect(&self, mut stream: UnixStream) -> Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > 8192 {
                bail!("the head of a CONNECT is too long");
            }
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let target = head.strip_prefix("CONNECT ").and_then(|head| head.split(' ').next()).context("no CONNECT")?;
        let opened = async {
            let target: SocketAddr = target.parse().with_context(|| format!("{target} is no address"))?;
            let to = self.pod_of(target).await?;
            anyhow::Ok(TcpStream::connect(to).await.with_context(|| format!("{target} by {to}"))?)
        };
        let mut upstream = match opened.await {
            Ok(upstream) => upstream,
            Err(error) => {
                stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await?;
                return Err(error);
            }
        };
        upstream.set_nodelay(true)?;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        copy_bidirectional(&mut stream, &mut upstream).await?;
        Ok(())
    }

    async fn pod_of(&self, target: SocketAddr) -> Result<SocketAddr> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&target).cloned();
        let pods = match seen {
            Some((at, pods)) if at.elapsed() < LAG => pods,
            _ => {
                let pods = self.look(target).await?;
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert(target, (Instant::now(), pods.clone()));
                pods
            }
        };
        let turn = self.turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        pods.get(turn % pods.len().max(1)).copied().with_context(|| format!("no pod is ready behind {target}"))
    }

    async fn look(&self, target: SocketAddr) -> Result<Vec<SocketAddr>> {
        let services = Api::<Service>::all(self.client.clone()).list(&ListParams::default()).await?;
        let ip = target.ip().to_string();
        let is_it =
            |service: &&Service| service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some(ip.as_str());
        let Some(service) = services.items.iter().find(is_it) else { return Ok(vec![target]) };
        let spec = service.spec.as_ref().context("a Service without a spec")?;
        let port = spec.ports.iter().flatten().find(|port| port.port == i32::from(target.port()));
        let port = port.with_context(|| format!("the Service has no port {}", target.port()))?;
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let labels: Vec<_> = spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let pods = pods.list(&ListParams::default().labels(&labels.join(","))).await?;
        Ok(pods.items.iter().filter_map(|pod| endpoint(pod, port)).collect())
    }
}

/// Where a pod serves a port of a Service, if it is ready and stays.
fn endpoint(pod: &Pod, port: &ServicePort) -> Option<SocketAddr> {
    let status = pod.status.as_ref()?;
    let is_ready =
        |condition: &k8s_openapi::api::core::v1::PodCondition| condition.type_ == "Ready" && condition.status == "True";
    if pod.metadata.deletion_timestamp.is_some() || !status.conditions.iter().flatten().any(is_ready) {
        return None;
    }
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|port| port.name.as_ref() == Some(name))?.container_port
        }
    };
    let ip: IpAddr = status.pod_ip.as_ref()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(number).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_ready_pod_that_stays_is_connected_to_at_the_port_that_is_meant() {
        let pod = |metadata: serde_json::Value, ready: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": metadata,
                "spec": {"containers": [{"name": "c", "ports": [{"name": "webhooks", "containerPort": 9443}]}]},
                "status": {"podIP": "127.0.0.9", "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let port = |target: serde_json::Value| -> ServicePort {
            serde_json::from_value(json!({"port": 443, "targetPort": target})).unwrap()
        };
        let stays = pod(json!({}), "True");
        for (target, expected) in
            [(json!("webhooks"), Some(9443)), (json!(8443), Some(8443)), (json!(null), Some(443)), (json!("x"), None)]
        {
            assert_eq!(endpoint(&stays, &port(target)).map(|address| address.port()), expected);
        }
        assert_eq!(endpoint(&pod(json!({}), "False"), &port(json!(1))), None);
        let goes = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(endpoint(&pod(goes, "True"), &port(json!(1))), None);
    }
}
