//! The proxy's certificate: loaded, or made and kept.
//!
//! There always is one, so that `sslmode=require` works without any set-up. A certificate that the
//! proxy made stays the same from start to start, so that clients can trust it by its file. A
//! restart takes in a renewed certificate.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, crypto};
use tokio_rustls::server::TlsStream;

/// The protocol name that Postgres clients offer in a TLS handshake.
const ALPN: &[u8] = b"postgresql";
/// Longest domain name.
const DOMAIN_BYTES_MAX: usize = 253;

/// What the proxy needs to answer a TLS handshake.
#[derive(Clone)]
pub struct Tls {
    acceptor: tokio_rustls::TlsAcceptor,
    domain: Option<String>,
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
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(io::Error::other)?
                .with_no_client_auth()
                .with_single_cert(chain, secret)
                .map_err(|error| {
                    unusable(key, &format!("the key of {}", cert.display()), &error)
                })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { acceptor: Arc::new(config).into(), domain: domain.map(str::to_owned) })
    }

    /// Uses the self-signed certificate in `dir`, made at the first call.
    ///
    /// It is for `localhost` and `*.localhost` and, with a `domain`, for that and its sub-domains.
    /// The files are `NAME.crt`, which clients can use as `sslrootcert`, and `NAME.key`, which only
    /// the owner can read; NAME is the domain or `localhost`.
    pub fn self_signed(dir: &Path, domain: Option<&str>) -> io::Result<Self> {
        let name = domain.unwrap_or("localhost");
        if !is_domain(name) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("\"{name}\" is not a domain name: give one such as db.example.com"),
            ));
        }
        let cert = dir.join(format!("{name}.crt"));
        let key = dir.join(format!("{name}.key"));
        // The key is put in place first, so a certificate that is there has its key.
        if !cert.try_exists().map_err(|error| named("look for", &cert, &error))? {
            make(&cert, &key, domain)?;
        }
        Self::load(&cert, &key, domain)
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

fn is_domain(name: &str) -> bool {
    let legal = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    name.len() <= DOMAIN_BYTES_MAX && name.split('.').all(legal)
}

fn make(cert: &Path, key: &Path, domain: Option<&str>) -> io::Result<()> {
    let mut names = vec!["localhost".to_owned(), "*.localhost".to_owned(), "127.0.0.1".to_owned()];
    names.extend(domain.into_iter().flat_map(|domain| [domain.to_owned(), format!("*.{domain}")]));
    let pair = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    if let Some(dir) = cert.parent() {
        fs::create_dir_all(dir).map_err(|error| named("create", dir, &error))?;
    }
    publish(key, &pair.signing_key.serialize_pem(), 0o600)?;
    publish(cert, &pair.cert.pem(), 0o644)
}

/// Writes a file so that it is either not there or whole.
fn publish(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let write = || {
        // Removed first because an existing file would keep its mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| named("write", path, &error))
}

fn named(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {doing} {}: {error}", path.display()))
}

fn unusable(path: &Path, what: &str, error: &dyn std::fmt::Display) -> io::Error {
    let text = format!("cannot use {} as {what}: {error}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A directory that is removed with the value.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("coppice-tls-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_made_certificate_is_private_and_stays() {
        let dir = Dir::new("stays");
        Tls::self_signed(&dir.0, None).unwrap();
        let cert = fs::read(dir.0.join("localhost.crt")).unwrap();
        let key = dir.0.join("localhost.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        Tls::self_signed(&dir.0, None).unwrap();
        assert_eq!(fs::read(dir.0.join("localhost.crt")).unwrap(), cert);
        Tls::self_signed(&dir.0, Some("db.example.com")).unwrap();
        assert_ne!(fs::read(dir.0.join("db.example.com.crt")).unwrap(), cert);
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 4, "nothing temporary is left");
    }

    #[test]
    fn a_half_made_pair_is_made_again() {
        let dir = Dir::new("half");
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.0.join("localhost.key"), "of an earlier try").unwrap();
        fs::write(dir.0.join("localhost.new"), "of an earlier try").unwrap();
        Tls::self_signed(&dir.0, None).unwrap();
        let mode = fs::metadata(dir.0.join("localhost.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn names_the_file_that_cannot_be_used() {
        let dir = Dir::new("bad");
        Tls::self_signed(&dir.0, None).unwrap();
        Tls::self_signed(&dir.0, Some("other")).unwrap();
        let file = |name: &str| dir.0.join(name);
        fs::write(file("empty"), "").unwrap();
        let table = [
            ("missing", "localhost.key", "missing"),
            ("localhost.crt", "missing", "missing"),
            ("empty", "localhost.key", "empty"),
            ("localhost.crt", "empty", "empty"),
            ("localhost.crt", "other.key", "other.key"),
        ];
        for (cert, key, culprit) in table {
            let error = Tls::load(&file(cert), &file(key), None).err().unwrap().to_string();
            assert!(error.contains(culprit), "{cert} with {key}: {error}");
        }
        for domain in ["", "../x", "a..b", "a b", "-a", "*.a", &"a".repeat(64)] {
            assert!(Tls::self_signed(&dir.0, Some(domain)).is_err(), "{domain}");
        }
    }
}
