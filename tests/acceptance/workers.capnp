# The worker, and its way out, which leads to Envoy alone.

using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .worker),
    (name = "out", external = (https = (
      tlsOptions = (trustedCertificates = [embed "results/ca.crt"]),
      certificateHost = "workers-oauth-provider.gateway.example",
    ))),
  ],
  sockets = [(
    name = "http", address = "127.0.0.1:0", service = "main", http = (forwardedProtoHeader = "x-forwarded-proto"),
  )],
);

const worker :Workerd.Worker = (
  modules = [
    (name = "worker.mjs", esModule = embed "worker.mjs"),
    (
      name = "@cloudflare/workers-oauth-provider",
      esModule = embed "node_modules/@cloudflare/workers-oauth-provider/dist/oauth-provider.js",
    ),
  ],
  bindings = [
    (name = "ISSUER", fromEnvironment = "ISSUER"),
    (name = "RESOURCE", fromEnvironment = "RESOURCE"),
  ],
  compatibilityDate = "2026-11-01",
  compatibilityFlags = ["global_fetch_strictly_public"],
  globalOutbound = "out",
);
