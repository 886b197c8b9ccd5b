{{/* The settings that are the chart's to set, as a flag would name them without its dashes and with _ within. */}}
{{- define "envoy-cimd.owned" -}}
config listen admin_listen store state_dir state_keys encryption_keys extra_ca tls_cert tls_key client_ca allow_peer
choreographer choreographer_ca choreographer_cert choreographer_key choreographer_peer
tokens tokens_ca tokens_cert tokens_key tokens_peer tokens_listen tokens_allow_peer tokens_socket_mode
socket_mode insecure_grpc insecure_traffic
{{- end }}

{{/* The settings of the exchange, which are the choreographer's where it is in pods of its own. */}}
{{- define "envoy-cimd.ofExchange" -}}
allow_host require_iss dynamic_registration token_endpoint_timeout patience refresh_claim
max_flows max_flows_per_user max_lookups max_lookups_per_user max_lookups_per_host
{{- end }}

{{/* The settings of every process. */}}
{{- define "envoy-cimd.ofAll" -}}
document_path threads ready_needs_exchange drain_delay drain_timeout otlp_endpoint log
{{- end }}

{{/* Whether `serve` needs its certificate. */}}
{{- define "envoy-cimd.serveHasTls" -}}
{{- if or (eq .Values.mode "service") .Values.choreographer.enabled .Values.tokens.enabled }}yes{{ end }}
{{- end }}

{{/* The config file of a component but for its lists, which are read again while it runs. */}}
{{- define "envoy-cimd.settings" -}}
{{- $values := .root.Values }}
{{- $isServe := eq .component "serve" }}
{{- $hasExchange := eq .component (include "envoy-cimd.exchange" .root) }}
{{- $all := regexSplit "\\s+" (include "envoy-cimd.ofAll" .) -1 }}
{{- $exchange := regexSplit "\\s+" (include "envoy-cimd.ofExchange" .) -1 }}
{{- $file := dict }}
{{- range $key, $value := $values.config }}
{{- if or (has $key $all) (ternary $hasExchange $isServe (has $key $exchange)) }}
{{- $_ := set $file $key $value }}
{{- end }}
{{- end }}
{{- $_ := set $file "admin_listen" (printf "%s:9002" $values.bindAddress) }}
{{- if $isServe }}
{{- $_ := set $file "state_keys" "/etc/envoy-cimd/state-keys/state.keys" }}
{{- if eq $values.mode "service" }}
{{- $_ := set $file "listen" (printf "%s:9001" $values.bindAddress) }}
{{- $_ := set $file "allow_peer" $values.tls.allowPeers }}
{{- else }}
{{- $_ := set $file "listen" "unix:/run/envoy-cimd/ext_proc.sock" }}
{{- end }}
{{- if $values.choreographer.enabled }}
{{- $host := include "envoy-cimd.host" (dict "root" .root "component" "choreographer") }}
{{- $_ := set $file "choreographer" (printf "https://%s:9003" $host) }}
{{- $_ := set $file "choreographer_ca" "/etc/envoy-cimd/tls/ca.crt" }}
{{- $_ := set $file "choreographer_cert" "/etc/envoy-cimd/tls/tls.crt" }}
{{- $_ := set $file "choreographer_key" "/etc/envoy-cimd/tls/tls.key" }}
{{- if $values.choreographer.peer }}
{{- $_ := set $file "choreographer_peer" $values.choreographer.peer }}
{{- end }}
{{- $roles := default (list "traffic") $values.config.roles }}
{{- if or (has "traffic" $roles) (has "refused" $roles) }}
{{- $_ := set $file "tokens" (printf "https://%s:9005" $host) }}
{{- end }}
{{- end }}
{{- else }}
{{- $_ := set $file "listen" (printf "%s:9003" $values.bindAddress) }}
{{- $_ := set $file "allow_peer" $values.choreographer.tls.allowPeers }}
{{- $_ := set $file "tokens_listen" (printf "%s:9005" $values.bindAddress) }}
{{- $peers := concat $values.choreographer.tls.allowPeers $values.tokens.allowPeers | uniq }}
{{- $_ := set $file "tokens_allow_peer" $peers }}
{{- end }}
{{- if and $isServe $hasExchange $values.tokens.enabled }}
{{- $_ := set $file "tokens_listen" (printf "%s:9005" $values.bindAddress) }}
{{- $_ := set $file "tokens_allow_peer" $values.tokens.allowPeers }}
{{- end }}
{{- if or (hasKey $file "allow_peer") (hasKey $file "tokens_listen") }}
{{- $_ := set $file "tls_cert" "/etc/envoy-cimd/tls/tls.crt" }}
{{- $_ := set $file "tls_key" "/etc/envoy-cimd/tls/tls.key" }}
{{- $_ := set $file "client_ca" "/etc/envoy-cimd/tls/ca.crt" }}
{{- end }}
{{- if $hasExchange }}
{{- $_ := set $file "encryption_keys" "/etc/envoy-cimd/encryption-keys/encryption.keys" }}
{{- if include "envoy-cimd.extraCa" .root }}
{{- $_ := set $file "extra_ca" "/etc/envoy-cimd/extra-ca/ca.crt" }}
{{- end }}
{{- if eq $values.store.type "file" }}
{{- $_ := set $file "state_dir" "/var/lib/envoy-cimd" }}
{{- end }}
{{- end }}
{{- toYaml $file }}
{{- end }}

{{- define "envoy-cimd.extraCa" -}}
{{- if or .Values.extraCa.existingSecret .Values.extraCa.existingConfigMap }}yes{{ end }}
{{- end }}

{{/* The lists of the config file. The path of a client's secret has its Secret's name and its key in it, so that it is
never another client's while an older pod reads a newer list. */}}
{{- define "envoy-cimd.lists" -}}
{{- $lists := dict }}
{{- if and (eq .component "serve") .root.Values.routes }}
{{- $_ := set $lists "routes" .root.Values.routes }}
{{- end }}
{{- if and (eq .component (include "envoy-cimd.exchange" .root)) .root.Values.clients }}
{{- $clients := list }}
{{- range .root.Values.clients }}
{{- $client := omit . "existingSecret" "key" }}
{{- if .existingSecret }}
{{- $path := printf "/etc/envoy-cimd/clients/%s/%s" .existingSecret .key }}
{{- $_ := set $client "client_secret_file" $path }}
{{- end }}
{{- $clients = append $clients $client }}
{{- end }}
{{- $_ := set $lists "clients" $clients }}
{{- end }}
{{- if $lists }}
{{- toYaml $lists }}
{{- end }}
{{- end }}
