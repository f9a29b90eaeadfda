//! The certificates that the proxy shows to clients: one for each host name that leads to a branch,
//! signed when a client first asks for it.
//!
//! A certificate for `*.localhost` would not do: many clients accept no wildcard directly below a
//! top-level name. Only names that can lead to a branch get a certificate of their own, and at most
//! [`LEAVES_MAX`] are kept, so a client that asks for any name gains nothing by it. A certificate
//! is signed anew long before it expires.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::SanType;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;

use super::authority::Authority;
use crate::locks::lock;
use crate::mentions::LOCALHOST;

/// How many certificates are kept; for one more, the one that was asked for longest ago goes.
const LEAVES_MAX: usize = 1000;
/// How long a certificate is shown.
const SHOWN: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Longest label of a domain name, and longest domain name.
const LABEL_BYTES_MAX: usize = 63;
const DOMAIN_BYTES_MAX: usize = 253;

/// Chooses the certificate of each handshake.
pub(super) struct Leaves {
    authority: Authority,
    domain: Option<String>,
    kept: Mutex<Kept>,
}

/// The certificates that are kept, by host name; none is for all other connections.
#[derive(Default)]
struct Kept {
    leaves: HashMap<Option<String>, Leaf>,
    /// Number of times that a certificate was asked for.
    asked: u64,
}

struct Leaf {
    certified: Arc<CertifiedKey>,
    made: SystemTime,
    /// What `Kept::asked` was when it was last asked for.
    asked: u64,
}

impl Leaves {
    /// With a `domain`, its sub-domains get certificates too.
    pub(super) fn new(authority: Authority, domain: Option<&str>) -> io::Result<Self> {
        let domain = domain.map(str::to_ascii_lowercase);
        let leaves = Self { authority, domain, kept: Mutex::default() };
        leaves.leaf(None, SystemTime::now())?;
        Ok(leaves)
    }

    /// The certificate for a host name that has one of its own, or the one for all others.
    fn leaf(&self, name: Option<String>, now: SystemTime) -> io::Result<Arc<CertifiedKey>> {
        if let Some(certified) = lock(&self.kept).find(&name, now) {
            return Ok(certified);
        }
        // Without the lock, at the price of signing twice if two clients ask at the same time.
        let certified = Arc::new(self.authority.sign(self.names(name.as_deref())?, now)?);
        lock(&self.kept).keep(name, Arc::clone(&certified), now);
        Ok(certified)
    }

    /// What a certificate is for.
    fn names(&self, name: Option<&str>) -> io::Result<Vec<SanType>> {
        let dns = |name: &str| name.to_owned().try_into().map(SanType::DnsName);
        let names = match name {
            Some(name) => vec![dns(name)],
            None => {
                let addresses =
                    [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
                let hosts = [LOCALHOST].into_iter().chain(self.domain.as_deref());
                let addresses = addresses.map(|address| Ok(SanType::IpAddress(address)));
                hosts.map(dns).chain(addresses).collect()
            }
        };
        names.into_iter().collect::<Result<_, _>>().map_err(io::Error::other)
    }

    /// The host name with a certificate of its own that a client asks for, if it does.
    fn own_name(&self, asked: &str) -> Option<String> {
        let host = asked.strip_suffix('.').unwrap_or(asked).to_ascii_lowercase();
        let is_own = host.split_once('.').is_some_and(|(label, parent)| {
            is_label(label) && (parent == LOCALHOST || self.domain.as_deref() == Some(parent))
        });
        is_own.then_some(host)
    }
}

impl Kept {
    /// The certificate for `name`, unless it was made too long ago, or in the future: then the
    /// clock was wrong.
    fn find(&mut self, name: &Option<String>, now: SystemTime) -> Option<Arc<CertifiedKey>> {
        self.asked += 1;
        let leaf = self.leaves.get_mut(name)?;
        leaf.asked = self.asked;
        let is_fresh = now.duration_since(leaf.made).is_ok_and(|age| age < SHOWN);
        is_fresh.then(|| Arc::clone(&leaf.certified))
    }

    fn keep(&mut self, name: Option<String>, certified: Arc<CertifiedKey>, made: SystemTime) {
        if self.leaves.len() >= LEAVES_MAX && !self.leaves.contains_key(&name) {
            let oldest = self.leaves.iter().min_by_key(|(_, leaf)| leaf.asked);
            let oldest = oldest.map(|(name, _)| name.clone());
            oldest.map(|name| self.leaves.remove(&name));
        }
        self.leaves.insert(name, Leaf { certified, made, asked: self.asked });
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|asked| self.own_name(asked));
        let failed = |error: &io::Error| tracing::error!(%error, "cannot sign a certificate");
        self.leaf(name, SystemTime::now()).inspect_err(failed).ok()
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// Whether branches can have host names below `name`.
pub(super) fn is_domain(name: &str) -> bool {
    name.len() <= DOMAIN_BYTES_MAX && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=LABEL_BYTES_MAX).contains(&label.len())
        && !label.starts_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;
    use tokio_rustls::rustls::client::WebPkiServerVerifier;
    use tokio_rustls::rustls::client::danger::ServerCertVerifier;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use tokio_rustls::rustls::{RootCertStore, crypto};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn open(scratch: &Scratch, domain: Option<&str>) -> Leaves {
        Leaves::new(Authority::open(&scratch.0).unwrap(), domain).unwrap()
    }

    /// Whether a client that trusts the CA and connects to `host` accepts what it is shown.
    fn verifies(scratch: &Scratch, leaf: &CertifiedKey, host: &str, now: SystemTime) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(scratch.0.join("ca.crt")).unwrap()).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let host = ServerName::try_from(host.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        verifier.verify_server_cert(&leaf.cert[0], &leaf.cert[1..], &host, &[], now).is_ok()
    }

    /// What a client is shown that asks for a host name, or for none.
    fn shown(leaves: &Leaves, asked: Option<&str>, now: SystemTime) -> Arc<CertifiedKey> {
        leaves.leaf(asked.and_then(|asked| leaves.own_name(asked)), now).unwrap()
    }

    #[test]
    fn each_name_of_a_branch_verifies_and_no_other_does() {
        let (scratch, other) = (Scratch::new("verify"), Scratch::new("verify-other"));
        let (plain, with) = (open(&scratch, None), open(&scratch, Some("DB.example.com")));
        let now = SystemTime::now();
        let table = [
            (&plain, Some("feature-login.localhost"), "feature-login.localhost", true),
            (&plain, Some("Feature-Login.localhost."), "feature-login.localhost", true),
            (&plain, Some("feature-login.localhost"), "main.localhost", false),
            (&plain, Some("feature-login.localhost"), "localhost", false),
            (&plain, Some("localhost"), "localhost", true),
            (&plain, None, "127.0.0.1", true),
            (&plain, None, "::1", true),
            (&plain, None, "127.0.0.2", false),
            (&plain, None, "main.localhost", false),
            (&plain, Some("a.b.localhost"), "a.b.localhost", false),
            (&plain, Some("x.db.example.com"), "x.db.example.com", false),
            (&with, Some("x.db.example.com"), "x.db.example.com", true),
            (&with, Some("x.db.example.com"), "y.db.example.com", false),
            (&with, Some("a.x.db.example.com"), "a.x.db.example.com", false),
            (&with, Some("db.example.com"), "db.example.com", true),
            (&with, Some("example.com"), "example.com", false),
            (&with, Some("main.localhost"), "main.localhost", true),
        ];
        for (leaves, asked, host, expected) in table {
            let leaf = shown(leaves, asked, now);
            assert_eq!(verifies(&scratch, &leaf, host, now), expected, "{asked:?} for {host}");
        }
        open(&other, None);
        let leaf = shown(&plain, None, now);
        assert!(!verifies(&other, &leaf, "localhost", now), "by the CA of another server");
    }

    #[test]
    fn what_is_shown_is_valid_however_long_the_server_runs() {
        let scratch = Scratch::new("renew");
        let (leaves, began) = (open(&scratch, None), SystemTime::now());
        for asked in [None, Some("main.localhost")] {
            let (mut now, mut last, mut signed) = (began, None, 0);
            let host = asked.unwrap_or("localhost");
            while now < began + DAY * 1000 {
                let leaf = shown(&leaves, asked, now);
                // The clock of a client may be behind by most of a day, or ahead by months.
                for clock in [now - DAY * 9 / 10, now, now + DAY * 300] {
                    assert!(verifies(&scratch, &leaf, host, clock), "{asked:?} at {now:?}");
                }
                let same = last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &leaf));
                signed += u32::from(!same);
                last = Some(leaf);
                now += DAY * 10;
            }
            assert!((33..=35).contains(&signed), "{asked:?}: signed {signed} times");
            // A clock that was ahead is set right.
            let leaf = shown(&leaves, asked, began);
            assert!(verifies(&scratch, &leaf, host, began));
        }
    }

    #[test]
    fn any_number_of_names_takes_bounded_memory() {
        let scratch = Scratch::new("bounded");
        let (leaves, now) = (open(&scratch, None), SystemTime::now());
        let kept = |leaves: &Leaves| lock(&leaves.kept).leaves.len();
        for number in 0..100 {
            shown(&leaves, Some(&format!("x{number}.example.com")), now);
            shown(&leaves, Some(&format!("a.x{number}.localhost")), now);
        }
        assert_eq!(kept(&leaves), 1, "names of no branch share a certificate");
        let used = shown(&leaves, Some("main.localhost"), now);
        for number in 0..LEAVES_MAX + 100 {
            shown(&leaves, Some(&format!("x{number}.localhost")), now);
            let again = shown(&leaves, Some("main.localhost"), now);
            assert!(Arc::ptr_eq(&used, &again), "one in use was dropped after {number}");
        }
        assert_eq!(kept(&leaves), LEAVES_MAX);
        let first = Some("x0.localhost".to_owned());
        assert!(!lock(&leaves.kept).leaves.contains_key(&first), "the oldest is dropped");
    }
}
