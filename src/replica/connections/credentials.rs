//! Where the credentials come from. All of this may block, and runs on blocking threads only.

use std::{fs, path::Path, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Config,
    client::{Body, ClientBuilder, ConfigExt},
};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::runtime::Handle;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn, util::BoxService};

/// A certificate of a plugin is renewed this long before it expires.
const BEFORE_EXPIRY: Duration = Duration::from_secs(60);

/// What requests and connections carry to say who they are from.
pub(super) struct Credentials {
    /// `Authorization`, impersonation, and what the configuration adds to each request.
    pub(super) headers: HeaderMap,
    pub(super) tls: Arc<ClientConfig>,
}

/// Makes credentials from a configuration, and knows when they have to be made anew.
pub(super) struct Source {
    config: Config,
    headers: Headers,
    /// What `headers` last said.
    said: HeaderMap,
    tls: Arc<ClientConfig>,
    /// The files behind `tls`, as they were read.
    files: Files,
    /// The end of a plugin's certificate.
    certificate_until: Option<Timestamp>,
}

type Files = Vec<Vec<u8>>;

/// kube's own layers, from which a request comes back with its headers: kube renews a token when it is asked for one.
struct Headers(BoxService<Request<Body>, Response<HeaderMap>, BoxError>);

impl Headers {
    /// Runs the plugin, if there is one.
    fn open(config: &Config) -> Result<Self, kube::Error> {
        let bounce =
            service_fn(
                |request: Request<Body>| async move { Ok::<_, BoxError>(Response::new(request.headers().clone())) },
            );
        let layers = ServiceBuilder::new()
            .option_layer(config.auth_layer()?)
            .layer(config.extra_headers_layer()?)
            .map_err(BoxError::from)
            .service(bounce);
        Ok(Self(BoxService::new(layers.map_err(BoxError::from))))
    }

    fn ask(&mut self) -> Result<HeaderMap, kube::Error> {
        let asked = (&mut self.0).oneshot(Request::new(Body::empty()));
        Handle::current().block_on(asked).map(Response::into_body).map_err(kube::Error::Service)
    }
}

impl Source {
    /// Reads files and runs the plugin.
    pub(super) fn open(config: Config) -> Result<(Self, Credentials), kube::Error> {
        let mut headers = Headers::open(&config)?;
        let said = headers.ask()?;
        let files = files(&config)?;
        let by_certificate = config.auth_info.exec.is_some() && !said.contains_key(http::header::AUTHORIZATION);
        let tls = Arc::new(tls(&config, by_certificate)?);
        // kube tells when a plugin's certificate expires by way of a client only.
        let certificate_until = match by_certificate {
            true => *ClientBuilder::try_from(config.clone())?.build().valid_until(),
            false => None,
        };
        let credentials = Credentials { headers: said.clone(), tls: Arc::clone(&tls) };
        Ok((Self { config, headers, said, tls, files, certificate_until }, credentials))
    }

    /// Makes them anew, whatever their expiry says.
    pub(super) fn renew(&mut self) -> Result<Credentials, kube::Error> {
        let (source, credentials) = Self::open(self.config.clone())?;
        *self = source;
        Ok(credentials)
    }

    /// What has changed of them, or will have soon; `None`: nothing.
    #[expect(clippy::disallowed_methods, reason = "a certificate's end is a time of day")]
    pub(super) fn refresh(&mut self) -> Result<Option<Credentials>, kube::Error> {
        if self.certificate_until.is_some_and(|end| Timestamp::now() + BEFORE_EXPIRY >= end) {
            return self.renew().map(Some);
        }
        let said = self.headers.ask()?;
        let files = files(&self.config)?;
        if said == self.said && files == self.files {
            return Ok(None);
        }
        if files != self.files {
            self.tls = Arc::new(tls(&self.config, self.certificate_until.is_some())?);
            self.files = files;
        }
        self.said = said;
        Ok(Some(Credentials { headers: self.said.clone(), tls: Arc::clone(&self.tls) }))
    }
}

/// The files that the TLS configuration is made from, for comparison.
fn files(config: &Config) -> Result<Files, kube::Error> {
    let auth = &config.auth_info;
    let named = [
        config.root_cert_file.as_deref(),
        auth.client_certificate.as_deref().filter(|_| auth.client_certificate_data.is_none()).map(Path::new),
        auth.client_key.as_deref().filter(|_| auth.client_key_data.is_none()).map(Path::new),
    ];
    named.into_iter().flatten().map(read).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, kube::Error> {
    fs::read(path).map_err(|error| kube::Error::Service(format!("failed to read {}: {error}", path.display()).into()))
}

/// The TLS configuration. The CA bundle is read here, for kube would read its file again during a handshake.
fn tls(config: &Config, by_plugin: bool) -> Result<ClientConfig, kube::Error> {
    let mut config = config.clone();
    if !by_plugin {
        // It would run once more, for a certificate that it does not give.
        config.auth_info.exec = None;
    }
    if let Some(path) = config.root_cert_file.take() {
        let certificates = CertificateDer::pem_slice_iter(&read(&path)?)
            .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| kube::Error::Service(format!("the CA in {}: {error}", path.display()).into()))?;
        config.root_cert = Some(certificates);
    }
    config.rustls_client_config()
}
