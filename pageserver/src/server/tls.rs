//! The proxy's certificate.

use crate::config::{Config, Layout};
use crate::error::{Error, Result};
use proxy::Tls;

/// The certificate that the settings name, or those that the proxy signs itself.
pub(super) fn load(config: &Config, layout: &Layout) -> Result<Tls> {
    let domain = config.domain.as_deref();
    match (&config.tls_cert, &config.tls_key) {
        (Some(cert), Some(key)) => Tls::load(cert, key, domain)
            .map_err(|e| Error::io("load the TLS certificate (--tls-cert, --tls-key)", &e)),
        _ => Tls::with_authority(&layout.tls, domain)
            .map_err(|e| Error::io("open the CA of the proxy", &e)),
    }
}
