"""Every fault that is planned for, and the tests that inject it: name of the file, `::`, name of the test.

`python -m tests.fault_table` prints the table as it stands in CONTRIBUTING.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """`id` is its number, `what` goes wrong, `tests` inject it; `note` says what of it cannot be injected, and why."""

    id: str
    what: str
    tests: tuple[str, ...]
    note: str = ""


FAULTS = (
    Fault(
        "N1",
        "RST on accept",
        (
            "test_faults_network::test_n1_a_connection_reset_on_accept_is_tried_again",
            "test_faults_network::test_n1_resets_without_end_are_a_row_that_names_their_type",
        ),
    ),
    Fault(
        "N2",
        "RST or FIN in mid upload",
        (
            "test_faults_network::test_n2_an_upload_that_breaks_off_leaves_one_whole_file",
            "test_faults_network::test_n2_uploads_that_always_break_off_are_a_row",
        ),
    ),
    Fault(
        "N3",
        "server answers 413/400 early and closes while we upload",
        (
            "test_faults_network::test_n3_a_refusal_in_mid_upload_is_a_row_after_few_attempts",
            "test_faults_network::test_n3_what_is_too_large_for_a_question_is_not_even_sent",
        ),
    ),
    Fault(
        "N4",
        "server never reads",
        (
            "test_faults_network::test_n4_a_server_that_never_reads_is_a_timeout",
            "test_faults_network::test_n4_a_server_that_does_not_read_once_is_asked_again",
        ),
    ),
    Fault(
        "N5",
        "server never answers",
        (
            "test_faults_network::test_n5_a_question_without_an_answer_is_asked_again_and_counted",
            "test_faults_network::test_n5_a_server_that_never_answers_is_a_timeout",
        ),
    ),
    Fault(
        "N6",
        "slow-loris answer (1 byte per 0.5 s)",
        (
            "test_faults_network::test_n6_n7_an_answer_that_drips_ends_at_the_deadline",
            "test_faults_network::test_n6_an_answer_that_drips_is_asked_for_again",
        ),
    ),
    Fault(
        "N7",
        "slow-loris headers",
        ("test_faults_network::test_n6_n7_an_answer_that_drips_ends_at_the_deadline",),
    ),
    Fault(
        "N8",
        "body shorter than Content-Length, chunked cut",
        ("test_faults_network::test_n8_an_answer_that_ends_early_is_asked_for_again",),
    ),
    Fault(
        "N9",
        "Content-Length too short",
        (
            "test_faults_network::test_n9_an_answer_cut_by_its_content_length_is_asked_for_once_more",
            "test_faults_network::test_n9_answers_that_are_always_cut_are_a_row_after_the_second",
            "test_faults_network::test_n9_more_bytes_than_were_announced_are_a_row_after_few_attempts",
            "test_faults_network::test_n9_an_answer_too_many_is_not_taken_for_that_of_the_next_question",
        ),
    ),
    Fault(
        "N10",
        "RST in mid body",
        (
            "test_faults_network::test_n10_an_answer_broken_off_by_a_reset_is_asked_for_again",
            "test_faults_network::test_n10_an_upload_whose_answer_is_lost_is_found_again",
        ),
    ),
    Fault(
        "N11",
        "garbage instead of HTTP, 2 MB header",
        (
            "test_faults_network::test_n11_what_is_no_http_is_asked_again",
            "test_faults_network::test_n11_what_is_never_http_is_a_row_of_one_line",
        ),
    ),
    Fault(
        "N12",
        "gzip bomb body (300 MiB from 300 KB)",
        (
            "test_faults_network::test_n12_a_gzip_bomb_is_a_row_and_not_in_memory",
            "test_faults_network::test_n12_an_endless_answer_is_cut_off",
        ),
    ),
    Fault(
        "N13",
        "bad gzip",
        (
            "test_faults_network::test_n13_bad_gzip_is_asked_for_again",
            "test_faults_network::test_n13_gzip_that_is_always_bad_is_a_row_after_the_second",
            "test_faults_network::test_n13_good_gzip_that_nobody_asked_for_is_understood",
        ),
    ),
    Fault(
        "N14",
        "200 with HTML (captive portal, proxy page)",
        (
            "test_faults_network::test_n14_a_page_instead_of_an_answer_is_asked_past",
            "test_faults_network::test_n14_nothing_but_pages_is_a_row",
            "test_faults_network::test_n14_pages_for_every_image_end_the_run_soon",
        ),
    ),
    Fault(
        "N15",
        "302 to 169.254.169.254, redirect loop",
        (
            "test_faults_network::test_n15_a_redirect_is_not_followed",
            "test_faults_network::test_n15_a_redirect_to_the_metadata_of_a_cloud_is_named",
            "test_faults_network::test_n15_a_redirect_loop_is_one_attempt",
            "test_faults_network::test_n15_an_upload_url_that_leads_elsewhere_gets_no_bytes",
        ),
    ),
    Fault(
        "N16",
        "DNS failure, connection refused",
        (
            "test_faults_network::test_n16_a_host_that_is_not_there_is_a_row_that_names_it",
            "test_faults_network::test_n16_a_host_that_is_not_there_ends_a_run_of_many_images",
            "test_faults_network::test_n16_a_service_that_never_answers_is_not_asked_for_every_image",
        ),
    ),
    Fault(
        "N17",
        "TLS untrusted or wrong name",
        (
            "test_faults_network::test_n17_a_certificate_that_is_right_is_taken",
            "test_faults_network::test_n17_a_certificate_that_is_wrong_is_not_tried_again_and_again",
        ),
    ),
    Fault(
        "N18",
        "TLS reset or stall in the handshake",
        (
            "test_faults_network::test_n18_a_handshake_that_breaks_or_stalls_is_tried_again",
            "test_faults_network::test_n18_a_handshake_that_never_ends_well_is_a_row",
        ),
    ),
    Fault(
        "N19",
        "408",
        ("test_faults_network::test_n19_a_408_is_asked_again",),
    ),
    Fault(
        "N20",
        "500 burst (1 in 3)",
        (
            "test_faults_network::test_n20_a_third_of_all_calls_failing_changes_nothing_in_the_tables",
            "test_storm::test_a_storm_of_every_kind_leaves_the_tables_of_a_calm_day",
        ),
    ),
    Fault(
        "N21",
        "503 for 60 s, all calls",
        (
            "test_faults_network::test_n21_an_outage_is_waited_out_with_a_few_probes_and_loses_no_row",
            "test_faults_network::test_n21_an_outage_of_the_uploads_loses_no_row_either",
        ),
    ),
    Fault(
        "N22",
        "502/504 from a load balancer, HTML body",
        (
            "test_faults_network::test_n22_a_page_of_a_load_balancer_is_asked_past",
            "test_faults_network::test_n22_whatever_a_load_balancer_says_its_status_is_in_the_row",
        ),
    ),
    Fault(
        "N23",
        "HTTPS_PROXY set to a dead proxy in the environment",
        (
            "test_faults_network::test_n23_a_dead_proxy_is_a_row_that_says_so",
            "test_faults_network::test_n23_a_proxy_that_stalls_is_a_timeout",
            "test_faults_network::test_n23_a_proxy_that_refuses_is_named",
            "test_faults_network::test_n23_a_proxy_that_works_is_used",
            "test_faults_network::test_n23_no_proxy_leaves_a_dead_proxy_out",
        ),
    ),
    Fault(
        "A1",
        "429 with RetryInfo 45.123s",
        (
            "test_faults_api::test_a1_a_run_rests_for_the_delay_and_goes_on",
            "test_faults_api::test_nobody_asks_before_the_delay_of_a_429_is_over",
        ),
    ),
    Fault(
        "A2",
        "429 without RetryInfo; delay only in the text",
        (
            "test_faults_api::test_nobody_asks_before_the_delay_of_a_429_is_over",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A3",
        "429 per day (also with RetryInfo 10s)",
        (
            "test_faults_api::test_a3_a_run_that_waits_for_midnight_asks_again_then",
            "test_faults_api::test_a3_a_model_that_is_not_in_the_tier_is_not_waited_for",
            "test_faults_api::test_what_ends_a_run_fails_no_row_and_the_next_run_asks_the_rest",
        ),
    ),
    Fault(
        "A4",
        "429 body is a list, or not JSON",
        (
            "test_faults_api::test_a_429_is_one_whatever_its_body",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A5",
        "Retry-After 0, negative, 3e9, a date in the past",
        (
            "test_faults_api::test_nobody_asks_before_the_delay_of_a_429_is_over",
            "test_faults_api::test_whatever_delay_a_429_names_the_waits_are_neither_none_nor_endless",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A6",
        "file stays PROCESSING for ever",
        (
            "test_faults_api::test_a6_a_file_that_is_never_ready_is_asked_after_for_a_time_and_not_sent_again",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A7",
        "file FAILED",
        (
            "test_faults_api::test_a7_the_row_of_a_failed_file_says_what_the_service_said",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A8",
        "400 'not in an ACTIVE state'",
        ("test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",),
    ),
    Fault(
        "A9",
        "file expired between upload and use (403 'no permission ... or it may not exist')",
        (
            "test_faults_api::test_a9_a_file_that_expires_before_it_is_used_is_uploaded_once_more",
            "test_faults_api::test_a9_a_file_of_an_earlier_run_that_has_expired_is_uploaded_again",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A10",
        "upload finalised but the answer is lost",
        (
            "test_faults_api::test_a10_an_upload_whose_answer_is_lost_is_sent_and_stored_once",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A11",
        "resumable upload: offset differs from what we sent, 308, session gone (404/410)",
        (
            "test_faults_api::test_a11_a_broken_upload_goes_on_where_the_service_stands",
            "test_faults_api::test_a11_a_308_is_gone_on_from",
            "test_faults_api::test_a11_bytes_at_a_wrong_offset_are_an_error_that_the_next_attempt_heals",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A12",
        "upload answer without uri/name, or sha256Hash differs from ours",
        (
            "test_faults_api::test_a12_a_file_that_is_not_surely_ours_is_never_asked_about",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A13",
        "storage quota of the Files API full (20 GB/project)",
        (
            "test_faults_api::test_a13_a_storage_that_stays_full_of_others_files_ends_the_run",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
            "test_files::test_a_full_storage_is_emptied_of_what_we_do_not_need_any_more",
            "test_files::test_with_a_full_storage_auto_sends_images_inside_the_questions",
        ),
    ),
    Fault(
        "A14",
        "file delete fails (404, 500)",
        (
            "test_faults_api::test_a14_a_file_that_cannot_be_deleted_is_logged_and_passed_over",
            "test_faults_api::test_a14_a_full_storage_of_which_not_all_can_be_deleted_ends_no_run",
        ),
    ),
    Fault(
        "A15",
        "blockReason / finishReason SAFETY, RECITATION, PROHIBITED_CONTENT, unknown enum",
        (
            "test_faults_api::test_what_is_blocked_for_a_reason_that_nobody_knows_is_not_asked_again",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A16",
        "no candidates, no parts, empty text, thought parts only",
        (
            "test_faults_api::test_nothing_said_is_not_nothing_seen",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A17",
        "MAX_TOKENS in mid list",
        ("test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",),
    ),
    Fault(
        "A18",
        "invalid JSON, prose, fences, two blocks, trailing fragment, NaN, control characters",
        (
            "test_faults_api::test_words_of_the_model_are_read_by_the_rule_or_kept_in_a_failed_row",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A19",
        "endless repetition (base64 or one object 400 times)",
        (
            "test_faults_api::test_words_of_the_model_are_read_by_the_rule_or_kept_in_a_failed_row",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A20",
        "valid JSON of another shape (dict, wrapper, scalar, null)",
        (
            "test_faults_api::test_words_of_the_model_are_read_by_the_rule_or_kept_in_a_failed_row",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A21",
        "box: 3 or 5 numbers, text, null, bool, NaN, > 1000, negative, swapped, zero area, 0-1 scale",
        (
            "test_faults_api::test_words_of_the_model_are_read_by_the_rule_or_kept_in_a_failed_row",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A22",
        "mask: tokens, no prefix, JPEG, not an image, PNG bomb, wrong size",
        (
            "test_faults_api::test_a_mask_of_no_use_leaves_its_box",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A23",
        "empty list",
        ("test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",),
    ),
    Fault(
        "A24",
        "label: 10 kB, emoji, NUL, newline, lone surrogate, HTML",
        (
            "test_faults_api::test_a24_hostile_labels_are_read_back_by_every_reader",
            "test_faults_api::test_a24_a_long_label_is_stored_exactly",
            "test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",
        ),
    ),
    Fault(
        "A25",
        "key revoked in mid run (400 API_KEY_INVALID, 401, 403)",
        (
            "test_faults_api::test_what_ends_a_run_fails_no_row_and_the_next_run_asks_the_rest",
            "test_faults_api::test_a_service_that_repeats_the_key_in_its_error_is_not_quoted_with_it",
        ),
    ),
    Fault(
        "A26",
        "model name wrong or withdrawn (404), region 400",
        (
            "test_faults_api::test_a26_a_look_at_the_model_that_fails_for_another_reason_stops_nothing",
            "test_faults_api::test_what_ends_a_run_fails_no_row_and_the_next_run_asks_the_rest",
            "test_faults_api::test_a_wrong_model_place_or_key_is_found_before_anything_is_uploaded",
        ),
    ),
    Fault(
        "A27",
        "one image refused (400 'Provided image is not valid')",
        ("test_faults_api::test_an_answer_that_goes_wrong_has_its_row_and_is_asked_again_if_that_can_help",),
    ),
    Fault(
        "A28",
        "answer of another image (server mixes up) or response twice",
        ("test_faults_api::test_a28_answers_that_overtake_each_other_are_not_mixed_up",),
    ),
    Fault(
        "P1",
        "SIGKILL at a random moment, 100 times, then finish",
        ("test_kills::test_p1_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened",),
    ),
    Fault(
        "P2",
        "SIGKILL inside the Parquet write or the commit",
        (
            "test_faults_machine::test_p2_a_run_killed_in_the_middle_of_commits_ends_as_if_undisturbed",
            "test_faults_machine::test_p2_a_run_killed_in_a_bucket_shows_whole_parts_only_and_is_resumed",
            "test_faults_process::test_p2_what_a_kill_leaves_of_a_commit_hides_nothing_and_is_replaced",
        ),
    ),
    Fault(
        "P3",
        "SIGTERM, SIGINT, double SIGINT",
        (
            "test_faults_process::test_p3_a_second_interrupt_ends_a_run_at_once",
            "test_cli::test_an_interrupted_run_says_how_to_go_on_and_leaves_no_process",
        ),
    ),
    Fault(
        "P4",
        "memory limit",
        (
            "test_faults_machine::test_p4_an_image_that_needs_more_memory_than_there_is_is_a_row",
            "test_memory::test_a_large_image_times_the_concurrency_does_not_multiply",
        ),
    ),
    Fault(
        "P5",
        "output disk full (ENOSPC)",
        (
            "test_faults_machine::test_p5_a_disk_that_gets_full_in_mid_run_leaves_whole_parts_and_the_run_goes_on_later",
            "test_faults_process::test_p5_a_full_disk_ends_a_run_which_goes_on_when_there_is_room",
        ),
    ),
    Fault(
        "P6",
        "state or checkpoint file corrupt, cut, of a newer version",
        (
            "test_faults_machine::test_p6_a_cut_part_of_a_run_that_is_taken_up_is_not_passed_over",
            "test_faults_machine::test_p6_a_cut_config_of_an_unfinished_run_costs_none_of_its_answers",
            "test_faults_machine::test_p6_a_damaged_run_json_hides_no_other_run_and_costs_nothing",
            "test_faults_process::test_p6_a_state_that_is_damaged_is_said_and_nothing_is_paid_again",
            "test_journal::test_a_damaged_journal_is_refused_and_not_ignored",
            "test_journal::test_a_journal_of_another_version_is_refused",
            "test_archive::test_a_damaged_part_of_another_run_costs_its_answers_and_not_the_run",
        ),
    ),
    Fault(
        "P7",
        "output bucket unwritable / missing / read-only; prefix exists with foreign files",
        (
            "test_faults_machine::test_p7_a_read_only_output_is_one_sentence_before_anything_is_paid",
            "test_faults_machine::test_p7_a_bucket_that_is_not_there_is_found_out_before_anything_is_paid",
            "test_faults_process::test_p7_an_output_that_cannot_be_written_is_refused_before_anything_is_paid",
            "test_faults_process::test_p7_foreign_files_beside_the_tables_disturb_nothing",
            "test_faults_process::test_p7_a_bucket_that_goes_away_ends_the_run_with_one_sentence",
            "test_buckets::test_a_bucket_that_is_not_there_is_one_sentence",
        ),
    ),
    Fault(
        "P8",
        "two runs of the same config at once",
        (
            "test_faults_machine::test_p8_two_processes_in_one_bucket_leave_each_row_once",
            "test_faults_process::test_p8_two_processes_of_one_config_do_not_work_at_once",
            "test_lock::test_only_one_of_two_takes_over",
        ),
    ),
    Fault(
        "P9",
        "stale lock after kill -9; lock holder paused (SIGSTOP) then resumed",
        (
            "test_faults_process::test_p9_an_owner_that_wakes_up_after_a_takeover_commits_nothing",
            "test_lock::test_a_lock_whose_heartbeat_has_stopped_is_taken_over_and_its_owner_cannot_commit",
            "test_lock::test_the_lock_of_a_killed_process_is_free_at_once",
        ),
    ),
    Fault(
        "P10",
        "wall clock jumps +2 h / -2 h",
        (
            "test_faults_process::test_p10_a_clock_that_jumps_changes_nothing",
            "test_limits::test_a_clock_that_is_set_while_a_run_waits_for_midnight_is_noticed",
        ),
    ),
    Fault(
        "P11",
        "too many open files (ulimit -n 64)",
        ("test_faults_process::test_p11_few_open_files_are_enough",),
    ),
    Fault(
        "P12",
        "read-only or missing HOME / PREFECT_HOME / TMPDIR; no Prefect server reachable",
        (
            "test_faults_machine::test_p12_a_home_that_cannot_be_made_is_one_sentence_before_any_work",
            "test_faults_machine::test_p12_a_bucket_needs_no_folder_for_temporary_files",
            "test_faults_machine::test_p12_a_part_that_finds_no_folder_for_its_temporary_file_is_one_sentence",
            "test_faults_process::test_p12_a_home_that_is_not_there_does_not_matter_to_a_run",
            "test_prefect_server::test_a_home_that_cannot_be_written_is_named",
        ),
    ),
    Fault(
        "P13",
        "stdout closed (broken pipe), log disk full",
        (
            "test_faults_machine::test_p13_a_run_is_completed_and_says_so_by_its_code_whoever_listens",
            "test_faults_machine::test_p13_a_refusal_that_nobody_can_read_keeps_its_exit_code",
            "test_faults_process::test_p13_nobody_reads_what_a_run_says",
            "test_cli::test_closing_our_output_early_is_no_traceback",
        ),
    ),
    Fault(
        "P14",
        "one worker task raises BaseException / hangs",
        ("test_faults_machine::test_p14_an_answer_that_never_comes_ends_as_a_row_at_its_limit",),
        note="an exception that nobody foresaw cannot be provoked from outside; what is tested is the task that hangs",
    ),
    Fault(
        "D1",
        "image deleted between scan and read",
        (
            "test_faults_data::test_d01_an_image_deleted_after_the_scan_is_a_row_and_the_rest_goes_on",
            "test_faults_data::test_d01_a_key_deleted_after_the_scan_is_a_row_too",
        ),
    ),
    Fault(
        "D2",
        "image replaced or still being written between scan, hash, size and upload",
        (
            "test_faults_data::test_d02_a_file_replaced_after_the_scan_is_measured_hashed_and_sent_as_it_then_is",
            "test_faults_data::test_d02_whatever_a_writer_does_the_row_tells_of_the_bytes_that_were_sent",
            "test_faults_data::test_d02_a_file_that_grows_while_it_is_read_is_whole_or_refused",
            "test_faults_data::test_d02_an_image_that_has_to_be_uploaded_again_is_compared_with_what_was_uploaded",
        ),
    ),
    Fault(
        "D3",
        "1 000 000 files / keys",
        (
            "test_faults_data::test_d03_the_memory_of_a_scan_does_not_grow_with_the_tree",
            "test_faults_data::test_d03_a_deep_tree_is_scanned_to_its_end",
            "test_faults_data::test_d03_a_bucket_is_listed_beyond_its_first_page",
            "test_memory::test_ten_times_the_images_take_hardly_more",
        ),
    ),
    Fault(
        "D4",
        "duplicate content under several names",
        (
            "test_faults_data::test_d04_a_content_is_uploaded_and_paid_for_once_over_all_shards",
            "test_end_to_end::test_a_duplicate_has_rows_of_its_own_and_costs_nothing",
        ),
    ),
    Fault(
        "D5",
        "names: unicode NFC/NFD, RTL, newline, %, #, 255 bytes, invalid UTF-8, hive-like dt=...",
        (
            "test_faults_data::test_d05_every_hard_name_is_in_every_table_and_becomes_no_column",
            "test_faults_data::test_d05_names_that_look_alike_keep_rows_of_their_own",
        ),
    ),
    Fault(
        "D6",
        "symlink loop, escape, dangling, FIFO, socket, directory named .jpg",
        (
            "test_faults_data::test_d06_nothing_hangs_and_nothing_outside_the_source_is_sent",
            "test_faults_data::test_d06_a_pipe_in_place_of_a_scanned_file_does_not_hang",
        ),
    ),
    Fault(
        "D7",
        "unreadable file or directory",
        (
            "test_faults_data::test_d07_a_source_that_may_not_be_listed_is_one_sentence",
            "test_end_to_end::test_unreadable_files_and_folders_become_rows",
        ),
    ),
    Fault(
        "D8",
        "truncated / corrupt",
        (
            "test_faults_data::test_d08_a_cut_file_of_every_format_is_a_row_and_costs_nothing",
            "test_end_to_end::test_bad_files_become_rows_and_good_ones_are_labelled",
        ),
    ),
    Fault(
        "D9",
        "bombs: pixels, text chunk, ICC, 40 000-frame GIF, 5 GB sparse",
        (
            "test_faults_data::test_d09_bombs_of_every_format_are_refused_in_little_memory",
            "test_faults_data::test_d09_a_tile_may_be_larger_than_its_image_but_not_absurdly_so",
            "test_faults_data::test_d09_a_file_cut_into_a_million_pieces_is_too_large",
            "test_faults_data::test_d09_fill_bytes_between_the_segments_of_a_jpeg_are_legal_in_any_number",
            "test_faults_data::test_d09_a_run_over_bombs_and_a_sparse_file_of_5_gigabytes_goes_on",
        ),
    ),
    Fault(
        "D10",
        "wrong extension, HTML as .jpg, EPS as .png",
        ("test_faults_data::test_d10_the_content_and_not_the_name_says_what_a_file_is",),
    ),
    Fault(
        "D11",
        "EXIF / irot / clap orientation, XMP-only, invalid value, Exif 6 without irot in HEIC",
        ("test_faults_data::test_d11_an_object_lies_in_the_displayed_picture_however_that_is_stored",),
    ),
    Fault(
        "D12",
        "CMYK, 16-bit, palette, animated, multi-image, 1x1, 193x31237",
        ("test_faults_data::test_d12_every_kind_of_picture_is_accepted_with_its_size_or_refused",),
    ),
    Fault(
        "D13",
        "empty input, glob without match, 0-byte object, key ending in '/'",
        (
            "test_faults_data::test_d13_nothing_to_do_is_said_before_anything_is_written",
            "test_faults_data::test_d13_an_empty_folder_holds_nothing_to_do",
            "test_faults_data::test_d13_folder_markers_of_a_bucket_are_no_images_and_empty_objects_are_rows",
            "test_faults_data::test_d13_a_key_that_no_path_could_be_is_a_row_or_an_image_and_ends_nothing",
        ),
    ),
    Fault(
        "D14",
        "listing changes between resume runs (added, removed, renamed)",
        (
            "test_archive::test_one_image_more_costs_one_images_requests_and_one_fewer_costs_none",
            "test_archive::test_a_renamed_image_costs_nothing",
        ),
    ),
    Fault(
        "C1",
        "unknown key, wrong type, missing key, duplicate YAML key, empty file",
        (
            "test_faults_config::test_c01_the_command_refuses_with_one_sentence_and_asks_nobody",
            "test_faults_config::test_c01_a_value_that_yaml_itself_cannot_make_is_one_sentence",
            "test_faults_config::test_c01_no_text_raises_anything_but_a_config_error",
        ),
    ),
    Fault(
        "C2",
        "path traversal in output name, template or image name (../)",
        (
            "test_faults_config::test_c02_a_name_that_could_be_a_path_is_refused",
            "test_faults_config::test_c02_a_run_cannot_be_called_by_a_path",
            "test_faults_config::test_c02_a_run_cannot_be_looked_up_by_a_path",
            "test_faults_config::test_c02_whatever_images_are_called_files_are_written_below_the_output_only",
        ),
    ),
    Fault(
        "C3",
        "secret written in the config, key with newline or spaces, no key",
        (
            "test_faults_config::test_c03_a_secret_in_the_config_is_refused_and_not_repeated",
            "test_faults_config::test_c03_a_secret_on_the_command_line_is_refused_and_not_repeated",
            "test_faults_config::test_c03_a_key_that_cannot_be_one_is_refused_and_not_shown",
            "test_faults_config::test_c03_a_line_break_after_the_key_is_taken_off_and_the_key_is_written_nowhere",
        ),
    ),
    Fault(
        "C4",
        "YAML bombs (aliases), !!python tags, 100 MB config, BOM, CRLF",
        (
            "test_faults_config::test_c04_hostile_yaml_is_refused_at_once",
            "test_faults_config::test_c04_a_mark_at_the_start_and_the_line_ends_of_windows_change_nothing",
            "test_faults_config::test_c04_a_file_that_is_no_utf_8_is_one_sentence",
            "test_faults_config::test_c04_a_config_of_100_megabytes_is_not_read",
            "test_faults_config::test_c04_a_config_from_a_pipe_is_read_up_to_the_same_size",
        ),
    ),
    Fault(
        "C5",
        "absurd values: concurrency 0, -1, 10^6; rpm 0; timeout 0; NaN",
        (
            "test_faults_config::test_c05_nothing_and_less_than_nothing_is_refused_with_the_bound",
            "test_faults_config::test_c05_what_is_absurdly_much_is_refused_with_the_bound",
            "test_faults_config::test_c05_what_is_no_number_is_refused",
            "test_faults_config::test_c05_a_number_of_thousands_of_digits_is_refused",
            "test_faults_config::test_c05_the_command_line_is_held_to_the_same_bounds",
        ),
    ),
    Fault(
        "C6",
        "resume with changed prompt/model/schema",
        (
            "test_faults_config::test_c06_another_question_gets_a_run_of_its_own_and_leaves_the_unfinished_one",
            "test_faults_config::test_c06_an_unfinished_run_cannot_be_named_for_another_question",
            "test_faults_config::test_c06_a_damaged_config_of_an_unfinished_run_is_said_and_left_alone",
        ),
    ),
    Fault(
        "C7",
        "output and input are the same place; output inside input",
        (
            "test_faults_config::test_c07_an_output_that_would_be_scanned_is_refused",
            "test_faults_config::test_c07_a_source_inside_the_output_is_no_part_of_it",
            "test_faults_config::test_c07_the_command_line_is_held_to_the_same_rule",
        ),
    ),
    Fault(
        "C8",
        "prompt text with braces, 1 MB, another script",
        (
            "test_faults_config::test_c08_words_are_sent_unchanged_and_read_back_from_the_frozen_config",
            "test_faults_config::test_c08_a_prompt_of_a_megabyte_is_sent_unchanged",
            "test_faults_config::test_c08_any_words_survive_the_freezing_of_a_config",
            "test_faults_config::test_c08_half_a_character_is_refused",
        ),
    ),
)


def as_markdown() -> str:
    """The table for people."""
    lines = ["| # | fault | tests |", "|---|---|---|"]
    for fault in FAULTS:
        tests = "<br>".join(f"`{name}`" for name in fault.tests) + (f"<br>{fault.note}" if fault.note else "")
        lines.append(f"| {fault.id} | {fault.what.replace('|', '/')} | {tests} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
