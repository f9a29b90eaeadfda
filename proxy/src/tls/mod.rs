//! TLS between clients and the proxy, and the certificate that the proxy shows.
//!
//! There always is one, so that `sslmode=require` works without any set-up: the user's own, or one
//! that the proxy signs. The CA of the proxy (`authority`) stays the same from start to start, so
//! that clients can trust it by its file; `leaves` are the certificates that it signs; `files`
//! writes both of its files. A restart takes in a renewed certificate of the user.

mod authority;
mod files;
mod leaves;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WantsServerCert;
use tokio_rustls::rustls::{ConfigBuilder, ServerConfig, crypto};
use tokio_rustls::server::TlsStream;

use authority::Authority;
use files::unusable;
use leaves::{Leaves, is_domain};

/// The protocol name that Postgres clients offer in a TLS handshake.
const ALPN: &[u8] = b"postgresql";

/// What the proxy needs to answer a TLS handshake.
#[derive(Clone)]
pub struct Tls {
    acceptor: tokio_rustls::TlsAcceptor,
    domain: Option<String>,
    ca_file: Option<PathBuf>,
}

/// A finished handshake.
pub(crate) struct Handshake {
    pub(crate) stream: TlsStream<TcpStream>,
    /// Host name that the client asked for.
    pub(crate) sni: Option<String>,
    /// Whether the client said that it speaks Postgres.
    pub(crate) alpn: bool,
}

impl Tls {
    /// Uses the certificate chain and the private key of two PEM files.
    ///
    /// With a `domain`, exactly its sub-domains (and those of `localhost`) choose a branch.
    pub fn load(cert: &Path, key: &Path, domain: Option<&str>) -> io::Result<Self> {
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(cert, "a PEM certificate", &error))?;
        if chain.is_empty() {
            return Err(unusable(cert, "a PEM certificate", &"it contains none"));
        }
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| unusable(key, "a PEM private key", &error))?;
        let config = builder()?
            .with_single_cert(chain, secret)
            .map_err(|error| unusable(key, &format!("the key of {}", cert.display()), &error))?;
        Ok(Self::new(config, domain, None))
    }

    /// Signs certificates with the CA in `dir`, made at the first call.
    ///
    /// They are for `localhost` and its sub-domains, for 127.0.0.1 and ::1 and, with a `domain`,
    /// for that and its sub-domains. Clients verify them by [`Tls::ca_file`]. Only the owner can
    /// read the key of the CA, which is beside that file.
    pub fn with_authority(dir: &Path, domain: Option<&str>) -> io::Result<Self> {
        if let Some(name) = domain.filter(|name| !is_domain(name)) {
            let text = format!("\"{name}\" is not a domain name: give one such as db.example.com");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let authority = Authority::open(dir)?;
        let file = authority.file().to_owned();
        let config = builder()?.with_cert_resolver(Arc::new(Leaves::new(authority, domain)?));
        Ok(Self::new(config, domain, Some(file)))
    }

    fn new(mut config: ServerConfig, domain: Option<&str>, ca_file: Option<PathBuf>) -> Self {
        config.alpn_protocols = vec![ALPN.to_vec()];
        Self { acceptor: Arc::new(config).into(), domain: domain.map(str::to_owned), ca_file }
    }

    /// The certificate of the proxy's own CA, by which clients can verify the proxy; none if the
    /// certificate is the user's.
    pub fn ca_file(&self) -> Option<&Path> {
        self.ca_file.as_deref()
    }

    /// The domain whose sub-domains are branches.
    pub(crate) fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    pub(crate) async fn accept(&self, socket: TcpStream) -> io::Result<Handshake> {
        let stream = self.acceptor.accept(socket).await?;
        let connection = stream.get_ref().1;
        let sni = connection.server_name().map(str::to_owned);
        let alpn = connection.alpn_protocol() == Some(ALPN);
        Ok(Handshake { stream, sni, alpn })
    }
}

fn builder() -> io::Result<ConfigBuilder<ServerConfig, WantsServerCert>> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    Ok(builder.with_no_client_auth())
}

#[cfg(test)]
#[path = "scratch_tests.rs"]
mod scratch;

#[cfg(test)]
mod tests {
    use super::scratch::Scratch;
    use super::*;
    use std::fs;

    #[test]
    fn names_the_file_that_cannot_be_used() {
        let (scratch, other) = (Scratch::new("bad"), Scratch::new("other"));
        let made = Tls::with_authority(&scratch.0, None).unwrap();
        assert_eq!(made.ca_file(), Some(scratch.0.join("ca.crt").as_path()));
        Tls::with_authority(&other.0, None).unwrap();
        fs::copy(other.0.join("ca.key"), scratch.0.join("other.key")).unwrap();
        let file = |name: &str| scratch.0.join(name);
        fs::write(file("empty"), "").unwrap();
        let table = [
            ("missing", "ca.key", "missing"),
            ("ca.crt", "missing", "missing"),
            ("empty", "ca.key", "empty"),
            ("ca.crt", "empty", "empty"),
            ("ca.crt", "other.key", "other.key"),
        ];
        for (cert, key, culprit) in table {
            let error = Tls::load(&file(cert), &file(key), None).err().unwrap().to_string();
            assert!(error.contains(culprit), "{cert} with {key}: {error}");
        }
        let users = Tls::load(&file("ca.crt"), &file("ca.key"), None).unwrap();
        assert_eq!(users.ca_file(), None, "a certificate of the user has a CA of its own");
        for domain in ["", "../x", "a..b", "a b", "-a", "*.a", &"a".repeat(64)] {
            assert!(Tls::with_authority(&scratch.0, Some(domain)).is_err(), "{domain}");
        }
    }
}
