//! The proxy's own certificate authority (CA): made once, kept in a directory, and signing the
//! certificates that the proxy shows to clients.
//!
//! A client that trusts `ca.crt` can verify the proxy under each of its host names. `ca.key` signs,
//! and only its owner can read the file. The key is put in place first, so a certificate that is
//! there has its key. The private key of the signed certificates is new with each start and is in
//! memory only.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::utsname::uname;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use tokio_rustls::rustls::sign::{self, CertifiedKey};
use tokio_rustls::rustls::{RootCertStore, crypto};

use super::files::{make_directory, named, publish, unusable};

/// Name of the CA's certificate, which clients trust.
pub(super) const CA_FILE: &str = "ca.crt";
/// Name of the CA's private key.
const KEY_FILE: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a CA is valid. Its clients have to be given the next one by hand.
const CA_DAYS: u32 = 3650;
/// How long a certificate that the CA signs is valid. Some clients refuse more than 398 days.
const LEAF_DAYS: u32 = 365;
/// Bytes of a serial number; RFC 5280 allows 20.
const SERIAL_BYTES: usize = 16;
/// Longest part of the machine's name in the name of its CA, which has 64 characters at most.
const MACHINE_CHARS_MAX: usize = 40;

/// The CA with its key.
pub(super) struct Authority {
    file: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// The key of all certificates that the CA signs in this run.
    leaf_key: KeyPair,
    signing_key: Arc<dyn sign::SigningKey>,
}

impl Authority {
    /// Opens the CA in `dir`, which is made unless its certificate is there.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let (file, key_file) = (dir.join(CA_FILE), dir.join(KEY_FILE));
        if !file.try_exists().map_err(|error| named("look for", &file, &error))? {
            make(dir, &file, &key_file)?;
        }
        let (name, key) = load(&file, &key_file)?;
        let leaf_key = KeyPair::generate().map_err(io::Error::other)?;
        let secret = PrivateKeyDer::try_from(leaf_key.serialize_der()).map_err(io::Error::other)?;
        let signing_key =
            crypto::ring::sign::any_supported_type(&secret).map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&name);
        Ok(Self { file, issuer: Issuer::new(params, key), leaf_key, signing_key })
    }

    /// The file of the CA's certificate.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Signs a certificate for `names` that is valid from a day before `now` on.
    pub(super) fn sign(&self, names: Vec<SanType>, now: SystemTime) -> io::Result<CertifiedKey> {
        let mut params = params("Coppice", now, LEAF_DAYS)?;
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&self.leaf_key, &self.issuer).map_err(io::Error::other)?;
        Ok(CertifiedKey::new(vec![signed.into()], Arc::clone(&self.signing_key)))
    }
}

/// What all certificates have in common. Each has a serial number of its own: clients may take two
/// of one issuer with the same number for the same.
fn params(name: &str, now: SystemTime, days: u32) -> io::Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = |since: Duration| date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs());
    // The clocks of clients may be behind.
    params.not_before = at(since.saturating_sub(DAY));
    params.not_after = at(since + DAY * days);
    let mut serial = [0; SERIAL_BYTES];
    let random = crypto::ring::default_provider().secure_random;
    random.fill(&mut serial).map_err(|_| io::Error::other("no random numbers can be had"))?;
    // Positive, and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn make(dir: &Path, file: &Path, key_file: &Path) -> io::Result<()> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let mut params = params(&authority_name(&key), SystemTime::now(), CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let cert = params.self_signed(&key).map_err(io::Error::other)?;
    make_directory(dir)?;
    publish(key_file, &key.serialize_pem(), 0o600)?;
    publish(file, &cert.pem(), 0o644)
}

/// A name that says whose CA it is, and that no other CA of the same machine has.
fn authority_name(key: &KeyPair) -> String {
    let machine = uname().map(|names| names.nodename().to_string_lossy().into_owned());
    let machine = machine.unwrap_or_default();
    let machine = machine.chars().filter(char::is_ascii_graphic).take(MACHINE_CHARS_MAX);
    let identifier = CertificateParams::default().key_identifier(key);
    let number = identifier.iter().take(4).map(|byte| format!("{byte:02x}"));
    format!("Coppice CA of {} {}", machine.collect::<String>(), number.collect::<String>())
}

/// The name and the key of the CA whose files are there.
fn load(file: &Path, key_file: &Path) -> io::Result<(String, KeyPair)> {
    let refused = |path: &Path, what: &str, error: &dyn Display| {
        let remedy = format!(
            "{error}; put back the file that belongs there, or remove {} to have a new CA made, \
             whose certificate clients then have to trust",
            file.display()
        );
        unusable(path, what, &remedy)
    };
    let is_certificate = |error: &dyn Display| refused(file, "the certificate of the CA", error);
    let der = CertificateDer::from_pem_file(file).map_err(|error| is_certificate(&error))?;
    let mut anchors = RootCertStore::empty();
    anchors.add(der).map_err(|error| is_certificate(&error))?;
    let anchor = anchors.roots.first();
    let Some((anchor, name)) = anchor.and_then(|anchor| Some((anchor, name_of(anchor)?))) else {
        return Err(is_certificate(&"it is not one that this program made"));
    };
    let is_key = |error: &dyn Display| refused(key_file, "the private key of the CA", error);
    let key = fs::read_to_string(key_file).map_err(|error| is_key(&error))?;
    let key = KeyPair::from_pem(&key).map_err(|error| is_key(&error))?;
    // The anchor has the value without its tag and its length.
    if !key.subject_public_key_info().ends_with(&anchor.subject_public_key_info) {
        return Err(is_key(&format!("it does not fit {}", file.display())));
    }
    Ok((name, key))
}

/// The name of a CA that [`make`] made: one common name of less than 100 bytes, and nothing else.
fn name_of(anchor: &TrustAnchor) -> Option<String> {
    match anchor.subject.as_ref() {
        [0x31, _, 0x30, _, 0x06, 3, 0x55, 4, 3, 0x0c, length, name @ ..]
            if usize::from(*length) == name.len() =>
        {
            String::from_utf8(name.to_vec()).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn files(scratch: &Scratch) -> [PathBuf; 2] {
        ["ca.crt", "ca.key"].map(|name| scratch.0.join(name))
    }

    #[test]
    fn the_ca_is_made_once_and_its_key_is_private() {
        let (scratch, other) = (Scratch::new("stays"), Scratch::new("another"));
        let [file, key] = files(&scratch);
        assert_eq!(Authority::open(&scratch.0).unwrap().file(), file);
        assert_eq!((mode(&file), mode(&key)), (0o644, 0o600));
        let contents = || [&file, &key].map(|path| fs::read(path).unwrap());
        let first = contents();
        Authority::open(&scratch.0).unwrap();
        assert_eq!(contents(), first);
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2, "nothing temporary is left");
        Authority::open(&other.0).unwrap();
        let name = |[file, key]: [PathBuf; 2]| load(&file, &key).unwrap().0;
        let (mine, theirs) = (name(files(&scratch)), name(files(&other)));
        assert!(mine.starts_with("Coppice CA of ") && mine.len() <= 64, "{mine}");
        assert_ne!(mine, theirs, "two CAs of a machine are told apart");
    }

    #[test]
    fn a_half_made_ca_is_made_again() {
        let scratch = Scratch::new("half");
        fs::create_dir_all(&scratch.0).unwrap();
        for name in ["ca.key", "ca.new"] {
            fs::write(scratch.0.join(name), "of an earlier try").unwrap();
        }
        Authority::open(&scratch.0).unwrap();
        assert_eq!(mode(&scratch.0.join("ca.key")), 0o600);
        Authority::open(&scratch.0).unwrap();
    }

    #[test]
    fn a_ca_whose_files_do_not_fit_is_refused_with_a_remedy() {
        let (scratch, other) = (Scratch::new("fit"), Scratch::new("theirs"));
        for dir in [&scratch.0, &other.0] {
            Authority::open(dir).unwrap();
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        let ([cert, secret], [_, theirs]) = (files(&scratch).map(read), files(&other).map(read));
        let mut two_names = CertificateParams::default();
        two_names.distinguished_name.push(DnType::OrganizationName, "another");
        let two_names = two_names.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let [file, key] = files(&scratch);
        let (cert, secret) = (Some(cert.as_str()), Some(secret.as_str()));
        let table = [
            (cert, None, &key, "private key"),
            (cert, Some(""), &key, "private key"),
            (cert, Some(theirs.as_str()), &key, "does not fit"),
            (Some(""), secret, &file, "certificate of the CA"),
            (Some(two_names.as_str()), secret, &file, "not one that this program made"),
        ];
        for (cert, secret, culprit, words) in table {
            for (path, text) in [(&file, cert), (&key, secret)] {
                let _ = fs::remove_file(path);
                if let Some(text) = text {
                    fs::write(path, text).unwrap();
                }
            }
            let error = Authority::open(&scratch.0).err().unwrap().to_string();
            let names = error.contains(&format!("cannot use {} as", culprit.display()));
            let remedy = format!("or remove {} to have a new CA made", file.display());
            assert!(names && error.contains(words) && error.contains(&remedy), "{error}");
        }
        fs::remove_file(&file).unwrap();
        Authority::open(&scratch.0).expect("the remedy helps");
    }
}
